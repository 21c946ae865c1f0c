"""HumanEval's tasks, and wrong versions of their reference solutions: what is done to each is drawn from a seed, so they stay.

python -m tests.sandbox.mutants > docs/sandbox-mutants.md      those that the official check lets pass
"""

from __future__ import annotations

import ast
import gzip
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

DATA = Path(__file__).parents[1] / "data" / "HumanEval.jsonl.gz"
KINDS = ("operator", "constant", "early return")
CHECK_WALL_S = 5
CHECK_MEMORY_BYTES = 2 << 30
TASKS_PER_PROCESS = 32


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One task as it is published."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    @property
    def reference(self) -> str:
        return self.prompt + self.canonical_solution

    @property
    def checker(self) -> str:
        """The official test, after what else the prompt defines: some tests use it."""
        others = [node for node in ast.parse(self.prompt).body if getattr(node, "name", "") != self.entry_point]
        return "\n\n".join([*map(ast.unparse, others), self.test])

    @property
    def official(self) -> str:
        """What is appended to a candidate by the official harness."""
        return f"\n{self.test}\ncheck({self.entry_point})\n"


class Mutant(NamedTuple):
    """One change of a reference solution.

    `before` and `after` are the part that differs; `line` is that of the solution, counted from its `def`.
    """

    task: Task
    kind: str
    line: int
    before: str
    after: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.task.task_id} {self.kind}"


def read_tasks() -> list[Task]:
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        return [msgspec.json.decode(line, type=Task) for line in file]


def make_mutants(task: Task) -> list[Mutant]:
    """One of each kind, or another one where the solution has nothing of that kind; all different."""
    rng = random.Random(task.task_id)
    changes = {kind: _changes(task, kind, rng) for kind in KINDS}
    chosen: dict[str, Mutant] = {}
    for kind in itertools.cycle(KINDS):
        mutant = next(changes[kind], None)
        if mutant:
            chosen.setdefault(mutant.code, mutant)
        if len(chosen) == len(KINDS):
            break
    return list(chosen.values())


def _changes(task: Task, kind: str, rng: random.Random) -> Iterator[Mutant]:
    """Every change of this kind that the solution allows, not the prompt; in an order drawn from `rng`."""
    tree = ast.parse(task.reference)
    original = ast.unparse(tree)
    places = [*itertools.product(range(len([*_nodes(task, tree)])), range(_NUM_VARIANTS[kind]))]
    rng.shuffle(places)
    for place, variant in places:
        tree = ast.parse(task.reference)
        node = [*_nodes(task, tree)][place]
        before = _text(node)
        after = _CHANGE[kind](node, tree, variant)
        code = ast.unparse(ast.fix_missing_locations(tree)) if after else original
        if after and code != original:
            yield Mutant(task, kind, _line(node, tree, task), before, _text(after), code)


def _nodes(task: Task, tree: ast.Module) -> Iterator[ast.AST]:
    first = task.prompt.count("\n")
    yield from (node for node in ast.walk(tree) if getattr(node, "lineno", 0) > first)


def _line(node: ast.AST, tree: ast.Module, task: Task) -> int:
    """Counted from the `def` of the entry point."""
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == task.entry_point]
    return getattr(node, "lineno", 0) - functions[0].lineno + 1


def _text(node: ast.AST) -> str:
    return ast.unparse(node).split("\n")[0][:80]


_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitXor: ast.BitOr, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def _change_operator(node: ast.AST, tree: ast.Module, _: int) -> ast.AST | None:
    """The node with its operator changed; None if it has none."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _BINARY:
        node.op = _BINARY[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = _COMPARISON[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    else:
        return None
    return node


def _change_constant(node: ast.AST, tree: ast.Module, variant: int) -> ast.AST | None:
    """The constant, one more, one less, or another text; None if it is none."""
    if not isinstance(node, ast.Constant) or any(
        node in ast.walk(text) for text in ast.walk(tree) if isinstance(text, ast.JoinedStr)
    ):
        return None
    if isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node.value, int | float):
        node.value += (1, -1)[variant]
    elif isinstance(node.value, str):
        node.value = (node.value + "x", "")[variant]
    else:
        return None
    return node


def _is_in_format(node: ast.AST, tree: ast.Module) -> bool:
    return any(node in ast.walk(text) for text in ast.walk(tree) if isinstance(text, ast.JoinedStr))


def _return_early(node: ast.AST, tree: ast.Module, variant: int) -> ast.AST | None:
    """A return before this statement, of nothing, of the first argument or of 0; None if it is no statement of a function."""
    for parent in ast.walk(tree):
        for name in ("body", "orelse"):
            block = getattr(parent, name, None)
            if isinstance(block, list) and node in block and not isinstance(node, ast.FunctionDef):
                early = ast.Return((None, _first_argument(tree, node), ast.Constant(0))[variant])
                block.insert(block.index(node), early)
                return early
    return None


def _first_argument(tree: ast.Module, node: ast.AST) -> ast.expr | None:
    """Of the innermost function around the node."""
    around = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and node in ast.walk(each)]
    arguments = around[-1].args.args if around else []
    return ast.Name(arguments[0].arg) if arguments else None


_CHANGE = {"operator": _change_operator, "constant": _change_constant, "early return": _return_early}
_NUM_VARIANTS = {"operator": 1, "constant": 2, "early return": 3}

_HARNESS = """
import json, os, resource, signal, sys
def check(program, wall_s, memory_bytes):
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    resource.setrlimit(resource.RLIMIT_CPU, (wall_s, wall_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.alarm(wall_s)
    exec(compile(program, "candidate.py", "exec"), {"__name__": "candidate"})
for program in json.load(sys.stdin):
    pid = os.fork()
    if pid == 0:
        try:
            check(program, *map(int, sys.argv[1:]))
        except BaseException:
            os._exit(1)
        os._exit(0)
    print(int(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0), flush=True)
"""


def check_outside(programs: Sequence[str]) -> list[bool]:
    """Whether each runs to its end in a process of its own, outside of any sandbox: for changed reference solutions only."""
    passed: list[bool] = []
    for start in range(0, len(programs), TASKS_PER_PROCESS):
        part = programs[start : start + TASKS_PER_PROCESS]
        done = subprocess.run(
            [sys.executable, "-I", "-c", _HARNESS, str(CHECK_WALL_S), str(CHECK_MEMORY_BYTES)],
            input=json.dumps(part),
            capture_output=True,
            text=True,
            check=True,
            timeout=2 * CHECK_WALL_S * len(part) + 30,
        )
        passed += [line == "1" for line in done.stdout.split()]
    return passed


def unkilled() -> list[Mutant]:
    """Mutants that the official check lets pass."""
    mutants = [mutant for task in read_tasks() for mutant in make_mutants(task)]
    passed = check_outside([mutant.code + mutant.task.official for mutant in mutants])
    return [mutant for mutant, is_passed in zip(mutants, passed, strict=True) if is_passed]


def page(survivors: Sequence[Mutant], num_mutants: int) -> str:
    rows = [
        f"| {mutant.task.task_id} | {mutant.kind} | {mutant.line} | {_cell(mutant.before)} | {_cell(mutant.after)} |"
        for mutant in survivors
    ]
    return PAGE.format(num_mutants=num_mutants, num_survivors=len(survivors), rows="\n".join(rows))


def _cell(text: str) -> str:
    return "`` " + text.replace("|", "\\|") + " ``"


PAGE = """# Mutants that HumanEval's checks do not kill

The sandbox is held to HumanEval: all 164 reference solutions pass, and of {num_mutants} mutants of them (an operator or constant
changed, or an early return put in; drawn from a seed) its verdict is that of the official check, run outside of any sandbox,
on every one. {num_survivors} of the mutants pass that check. They are no faults of the sandbox: either the change makes no
difference, or no assertion sees it.

```sh
python -m tests.sandbox.mutants > docs/sandbox-mutants.md    # this page: runs the official check
pytest -m slow tests/sandbox/test_humaneval.py               # holds the sandbox's verdicts against it
```

Lines are counted from the `def`; an early return stands before the statement named.

| task | kind | line | before | after |
|---|---|---|---|---|
{rows}
"""


def main() -> None:
    num_mutants = sum(len(make_mutants(task)) for task in read_tasks())
    print(page(unkilled(), num_mutants), end="")


if __name__ == "__main__":
    main()
