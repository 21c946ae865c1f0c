"""The values that travel between rooms: frozen, pure, without storage ids.

Texts are Python strings, token ids are plain ints of the loaded model's vocabulary, log-probabilities are natural logarithms,
durations are seconds.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "abort"]
Role = Literal["system", "user", "assistant", "tool"]


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every value here: frozen, keyword-only."""


class ToolCall(Value, frozen=True, kw_only=True):
    """One call the model asks for; `arguments` is JSON text exactly as generated."""

    id: str
    name: str
    arguments: str


class Tool(Value, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is its JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class Message(Value, frozen=True, kw_only=True):
    """One turn of a conversation; `reasoning` is an assistant's thinking, kept apart from what it said."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class Sampling(Value, frozen=True, kw_only=True):
    """How one candidate's tokens are drawn; None means the model's recommended value.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        seed: candidate i of a group draws with `candidate_seed(seed, i)`; None draws a fresh seed.
        repetition_penalty: multiplicative, over the last 64 tokens; 1 is off (llama.cpp's definition).
        frequency_penalty: subtracted once per earlier occurrence in the answer (OpenAI's definition).
        presence_penalty: subtracted once if the token occurred in the answer (OpenAI's definition).
        logit_bias: added to the logits of these token ids.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}


def candidate_seed(seed: int, index: int) -> int:
    """Seed of candidate `index`, 32 bits: candidate 0 keeps the seed, so that n=1 and n=k agree on it.

    The step is 2**32 / golden ratio, so that neighbouring seeds with several candidates do not overlap.
    """
    return (seed + index * 0x9E3779B9) & 0xFFFFFFFF


class Prompt(Value, frozen=True, kw_only=True):
    """What an engine takes: exactly one of `messages`, `text` (with or without `suffix`) and `tokens`.

    Attributes:
        model: id of the model; an engine that runs another one refuses.
        text: raw prompt, special tokens in it are parsed; no template is applied.
        suffix: what follows the gap; makes `text` a fill-in-the-middle prompt.
        sampling: one for all candidates, or one per candidate.
        n: number of candidates, 1..128.
        stop: strings that end an answer and are not part of it.
        max_tokens: bound on generated tokens per candidate, thinking included; None: the rest of the context, up to a setting.
        tool_choice: "auto", "none", "required", or the name of one tool as "tool:NAME".
        json_schema: the answer must be JSON of this schema; `{}` means any JSON object.
        grammar: the whole answer must follow this grammar, in llama.cpp's GBNF; goes with neither tools nor json_schema.
        top_logprobs: None for no log-probabilities, else how many alternatives (0..20) beside each chosen token.
        mean_logprob: have each answer's `mean_logprob`, at least an estimate; without it, only with `top_logprobs`.
        thinking: None leaves it to the model's template; False asks for none.
        thinking_budget_tokens: thinking is closed after this many tokens.
        adapter: name of a LoRA adapter to answer with; None is the model as it is.
        features: ask for hidden-state features in each `Generation`.
        owner: whose request this is, for fairness.
        priority: 0 (first) to 2.
        deadline_s: give up (finish reason "abort") this long after submission.
        allowance_tokens: each candidate stops and waits after this many tokens until its group allows more; None: no bound.
        whole: nobody follows the answer while it is made; an engine may hand on all its deltas at the end.
        is_race: the first good candidate ends the others; an engine may pause some if that gives a good one sooner.
    """

    model: str = ""
    messages: tuple[Message, ...] = ()
    text: str | None = None
    suffix: str | None = None
    tokens: tuple[int, ...] | None = None
    sampling: tuple[Sampling, ...] = (Sampling(),)
    n: int = 1
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    top_logprobs: int | None = None
    mean_logprob: bool = False
    thinking: bool | None = None
    thinking_budget_tokens: int | None = None
    adapter: str | None = None
    features: bool = False
    owner: str = ""
    priority: int = 1
    deadline_s: float | None = None
    allowance_tokens: int | None = None
    whole: bool = False
    is_race: bool = False


class TokenLogprob(Value, frozen=True, kw_only=True):
    """Log-probability of one generated token under the model's own distribution (before temperature, penalties, bias)."""

    token: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


class ToolCallDelta(Value, frozen=True, kw_only=True):
    """A piece of a tool call: `id` and `name` come with the first piece, `arguments` in pieces of valid UTF-8."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(Value, frozen=True, kw_only=True):
    """What one candidate gained since its last Delta; `finish_reason` is set on its last one."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


class Timings(Value, frozen=True, kw_only=True):
    """Where one candidate's time went, in seconds since submission (`first_token_s`) or between tokens."""

    queue_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0


class Features(Value, frozen=True, kw_only=True):
    """Hidden state after the output norm over the generated tokens, float32, length = model width."""

    mean: tuple[float, ...]
    last: tuple[float, ...]


class Generation(Value, frozen=True, kw_only=True):
    """One finished candidate.

    Attributes:
        tokens: ids generated, the end-of-turn token excluded.
        num_tokens: tokens generated, end-of-turn included: what usage counts.
        mean_logprob: mean log-probability of the generated tokens, where it was asked for and the engine knows it.
        matched_stop: the stop string that ended it; None if none did, or the engine does not say.
    """

    index: int
    text: str
    finish_reason: FinishReason
    model: str
    reasoning: str = ""
    reasoning_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[int, ...] = ()
    num_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    mean_logprob: float | None = None
    matched_stop: str | None = None
    features: Features | None = None
    timings: Timings = Timings()


class Embeddings(Value, frozen=True, kw_only=True):
    """Unit-length vectors, one per input, and how many tokens they cost."""

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int
    model: str


class Capabilities(Value, frozen=True, kw_only=True):
    """What an engine can honour; the contract suite and the gateway ask only for what is declared here."""

    model: str
    architecture: str
    context_tokens: int
    vocab_size: int = 0
    size_bytes: int = 0
    num_parameters: int = 0
    max_candidates: int = 128
    logprobs: bool = False
    features: bool = False
    tools: bool = False
    json_schema: bool = False
    grammar: bool = False
    thinking: bool = False
    fill_in_middle: bool = False
    tokenize: bool = False
    embeddings: str | None = None  # name of the embedding model
    embedding_width: int = 0


class EngineStats(Value, frozen=True, kw_only=True):
    """A snapshot for /metrics; counters grow for the life of the process."""

    num_running: int = 0  # sequences decoding, prefilling or parked
    num_waiting: int = 0  # candidates queued
    cells_used: int = 0  # KV cells held, cached prefixes included
    cells_live: int = 0  # KV cells held by running sequences
    cells_total: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens served from the prefix tree
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    step_s: float = 0.0  # time in steps, decode included
    decode_s: float = 0.0  # time inside llama_decode
    adapter_switches: int = 0  # times that steps went over to another adapter, or to none
    drafted_tokens: int = 0  # guesses at tokens that were computed before the tokens before them were known
    accepted_tokens: int = 0  # of those, the right ones
    shared_tokens: int = 0  # drawn from logits that another candidate of the prompt drew from too, which cost nothing more


class AdapterInfo(Value, frozen=True, kw_only=True):
    """A LoRA adapter that prompts may name.

    Attributes:
        path: its GGUF file.
        scale: how much of it is added; 1 is what it was trained for.
        num_users: prompts that have it and are not answered yet.
    """

    name: str
    path: str
    scale: float = 1.0
    num_users: int = 0


UserRole = Literal["owner", "admin", "member"]
Scope = Literal["chat", "embeddings", "tasks", "interactive", "projects", "read", "admin", "worker"]
RequestState = Literal["queued", "running", "completed", "aborted", "failed", "interrupted", "refused"]


class Limits(Value, frozen=True, kw_only=True):
    """What one key or one user may use; None is no limit.

    Attributes:
        concurrency: requests at the same time, queued ones included.
        tokens_per_day: prompt and completion together, per UTC day; `_month` per UTC calendar month.
        cost_per_day: millionths of the currency the prices are given in.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_per_day: int | None = None
    cost_per_month: int | None = None


class User(Value, frozen=True, kw_only=True):
    """A person with an account; times are Unix seconds.

    Attributes:
        username: empty for the owner before set-up.
        limits: over all keys of this user.
        is_ready: a password has been chosen.
    """

    id: str
    username: str = ""
    email: str = ""
    role: UserRole = "member"
    limits: Limits = Limits()
    is_ready: bool = False
    created_at: float = 0.0
    disabled_at: float | None = None

    @property
    def is_admin(self) -> bool:
        return self.role in ("owner", "admin")


class Principal(Value, frozen=True, kw_only=True):
    """Who is asking: a user, through an API key or signed in.

    Attributes:
        owner: id of the user; whose requests, usage and budget these are.
        username: for people to read.
        key_id: empty if the user is signed in.
        name: the key's name.
        models: ids this key may name; None is all.
        allow_remote: requests may be sent to other machines, where a fallback is there.
    """

    owner: str
    username: str = ""
    role: UserRole = "member"
    key_id: str = ""
    name: str = ""
    scopes: frozenset[str] = frozenset()
    models: frozenset[str] | None = None
    allow_remote: bool = False
    key_limits: Limits = Limits()
    user_limits: Limits = Limits()

    @property
    def is_admin(self) -> bool:
        return self.role in ("owner", "admin")


class Usage(Value, frozen=True, kw_only=True):
    """One metered request, as the ledger keeps it: exactly one per request id.

    Attributes:
        at: Unix seconds when it was admitted.
        state: how it ended.
        prompt_tokens: cached ones included.
        cost: millionths of the currency; 0 where the model has no price.
        finish: finish reason or error code, for people.
        is_estimated: the counts are bounds, not measurements (interrupted requests).
    """

    request_id: str
    at: float
    owner: str
    key_id: str
    route: str
    model: str
    state: RequestState
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    finish: str = ""
    is_streamed: bool = False
    is_estimated: bool = False
    queue_s: float = 0.0
    ttft_s: float | None = None
    wall_s: float = 0.0


class Activity(Value, frozen=True, kw_only=True):
    """A request as the Activity page shows it, running or ended. Holds no text of prompt or answer."""

    usage: Usage
    username: str = ""
    key_name: str = ""
    queue_position: int = 0  # 1 is next; 0 is not waiting
    status: int = 0  # HTTP; 0 before the answer began
    priority: int = 1


class Snippet(Value, frozen=True, kw_only=True):
    """A piece of text and where it stands: a retrieved context or the file to change."""

    path: str
    text: str


class Example(Value, frozen=True, kw_only=True):
    """A visible example: a call and its result, both as Python source."""

    call: str
    result: str


class Failure(Value, frozen=True, kw_only=True):
    """What a run of failing code showed: a traceback, or a call whose result (`repr`) was not the expected one."""

    call: str = ""
    expected: str = ""
    returned: str = ""
    traceback: str = ""


SandboxMode = Literal["run", "pytest", "function", "stdin", "lint"]
Outcome = Literal["passed", "completed", "failed", "error", "timeout", "memory_limit", "output_limit", "killed", "tampered"]
LimitName = Literal["wall", "cpu", "memory", "processes", "file_size", "output"]
Tier = Literal["native", "bwrap", "landlock", "none"]
Compare = Literal["exact", "json", "approx"]
CaseOutcome = Literal["passed", "failed", "error", "timeout", "skipped"]


class RunLimits(Value, frozen=True, kw_only=True):
    """What one run in the sandbox may use; the defaults are `design` values, chosen.

    Attributes:
        wall_s: from the start of the run in its box, waiting for a free slot excluded.
        cpu_s: user and system time of each process.
        memory_bytes: resident memory of all processes of the run together.
        processes: processes and threads at the same time.
        file_size_bytes: largest single file that may be written.
        disk_bytes: all files in the working directory; /tmp and /dev/shm have as much again, each.
        output_bytes: of stdout; a program that writes more is ended. Of stderr, head and tail of 256 KiB are kept.
    """

    wall_s: float = 10.0
    cpu_s: float = 8.0
    memory_bytes: int = 512 * 1024 * 1024
    processes: int = 64
    file_size_bytes: int = 64 * 1024 * 1024
    disk_bytes: int = 64 * 1024 * 1024
    output_bytes: int = 1024 * 1024


class Case(Value, frozen=True, kw_only=True):
    """One call of the entry point, or one run with this text on stdin. Values are Python literals as source text.

    Attributes:
        args: source of a tuple or list of positional arguments.
        kwargs: source of a dict of keyword arguments.
        stdin: set in mode stdin; then `expected` is the text that stdout must hold.
        compare: exact (types too), json (as JSON sees it: tuples are lists), approx (numbers may differ by `tolerance`,
            relative or absolute).
    """

    args: str = "()"
    kwargs: str = "{}"
    stdin: str | None = None
    expected: str = ""
    compare: Compare = "exact"
    tolerance: float = 1e-6


class Program(Value, frozen=True, kw_only=True):
    """Untrusted code, and what is to be found out about it.

    Attributes:
        code: the candidate; Python tests import it as `solution`.
        mode: run (to its end), pytest (`test_code`), function (`entry_point` on `cases`, or a checker in `test_code`: assert
            statements, or a function `check(candidate)` as HumanEval has it), stdin (`cases`), lint.
        entry_point: "name", or "Class.method" of a class that needs no arguments.
        files: further files by relative path, beside the code.
        fresh: a fresh interpreter with a hash seed of its own, instead of a fork of a warm one.
    """

    code: str
    language: str = "python"
    mode: SandboxMode = "run"
    test_code: str = ""
    entry_point: str = ""
    cases: tuple[Case, ...] = ()
    stdin: str = ""
    files: dict[str, str] = {}
    fresh: bool = False


class CaseResult(Value, frozen=True, kw_only=True):
    """One test, or one case; texts are trimmed to a few kilobytes.

    Attributes:
        name: pytest's node id, or the call.
        message: the failing assertion or the candidate's traceback.
    """

    name: str
    outcome: CaseOutcome
    expected: str = ""
    returned: str = ""
    message: str = ""
    wall_s: float = 0.0


class Execution(Value, frozen=True, kw_only=True):
    """What a run in the sandbox showed. A failure of ours is never one of these, but an exception.

    Attributes:
        outcome: passed (tests ran and all passed), completed (mode run or lint, exit 0), failed (tests ran and did not all
            pass, or exit code not 0), error (no test could run: syntax, import, zero tests), or how it was ended.
        limit: the limit that was hit, if one was.
        exit_code: of the program; negative is a signal; None if it was ended by us.
        sealed: tests and candidate were in separate boxes, and values were compared outside.
        tier: how it was isolated.
        queue_s: waiting for a slot; wall_s begins after it.
        peak_bytes: largest resident memory seen.
        lint_score: pylint's, 0..10, in mode lint.
    """

    outcome: Outcome
    tier: Tier
    limit: LimitName | None = None
    exit_code: int | None = None
    sealed: bool = False
    compiled: bool = True
    cases: tuple[CaseResult, ...] = ()
    tests_run: int = 0
    tests_passed: int = 0
    stdout: str = ""
    stderr: str = ""
    error_type: str = ""
    error_message: str = ""
    lint_score: float | None = None
    queue_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0

    @property
    def passed(self) -> bool:
        """All tests passed, and there was at least one."""
        return self.outcome == "passed" and self.tests_run > 0 and self.tests_passed == self.tests_run


class Layer(Value, frozen=True, kw_only=True):
    """One layer of isolation on this machine: whether it holds, why not, and the command that mends it."""

    name: str
    active: bool
    reason: str = ""
    remedy: str = ""


class SlowRun(Value, frozen=True, kw_only=True):
    """One of the slowest runs of late."""

    at: float  # Unix seconds
    mode: str
    outcome: str
    wall_s: float


class SandboxStatus(Value, frozen=True, kw_only=True):
    """The pool as it is now; counters grow for its life.

    Attributes:
        tier: None if code is refused; `reason` says why, and `layers` how to mend it.
        outcomes: runs by outcome.
        refusals: runs refused by error code.
        p50_s: of the wall time of the last runs; likewise p95_s.
    """

    tier: Tier | None
    reason: str = ""
    layers: tuple[Layer, ...] = ()
    slots: int = 0
    running: int = 0
    waiting: int = 0
    zygotes: int = 0
    zygote_restarts: int = 0
    outcomes: dict[str, int] = {}
    refusals: dict[str, int] = {}
    p50_s: float = 0.0
    p95_s: float = 0.0
    slowest: tuple[SlowRun, ...] = ()
    languages: tuple[str, ...] = ()


EditFault = Literal[
    "malformed", "not_found", "ambiguous", "missing", "exists", "outside", "protected", "unchanged", "too_large", "unsupported"
]


class Edit(Value, frozen=True, kw_only=True):
    """What a candidate changes in a project: new text of each file by relative path; None where the file is deleted."""

    changes: dict[str, str | None]


class EditRejection(Value, frozen=True, kw_only=True):
    """Why a candidate's edit was not applied; nothing of it was.

    Attributes:
        fault: malformed, not_found (text to be replaced), ambiguous (found more than once), missing or exists (the file), outside
            (a path that leads out of the project), protected (the verdict rests on it), unchanged, too_large, unsupported.
        block: which block or hunk of its form, from 1; 0 if it is the whole.
        message: names file, block and what did not match, with the lines that come nearest: for whoever is to mend it.
    """

    fault: EditFault
    message: str
    path: str = ""
    block: int = 0

    @property
    def is_tampering(self) -> bool:
        return self.fault in ("outside", "protected")


class ProjectCheck(Value, frozen=True, kw_only=True):
    """A change to a project, and how the project's own tests are run.

    Attributes:
        directory: of the project, absolute.
        edit: what the candidate wrote: search/replace blocks, a unified diff, or whole files.
        tests: the user's own command, as one types it; of pytest each test is heard, of anything else the exit status counts.
        python: interpreter, or directory of a virtual environment; empty: .venv or venv in the project.
        fail_to_pass: node ids that fail without the edit and must pass with it; empty: all that the command finds failing.
        protected: patterns of further paths that the edit must not change and that are read-only for the tests.
        read_only: absolute paths beside project and environment that the tests must see.
        limits: of one run of the tests; there are two, without the edit and with it.
    """

    directory: str
    edit: str
    tests: str = "pytest"
    python: str = ""
    fail_to_pass: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    limits: RunLimits = RunLimits(
        wall_s=300.0,
        cpu_s=300.0,
        memory_bytes=2 * 1024 * 1024 * 1024,
        processes=256,
        file_size_bytes=256 * 1024 * 1024,
        disk_bytes=512 * 1024 * 1024,
        output_bytes=8 * 1024 * 1024,
    )


class ProjectRun(Value, frozen=True, kw_only=True):
    """One run of a project's tests.

    Attributes:
        outcome: passed (tests ran and all passed), completed (exit status 0, tests not heard), failed, error (no test ran, or
            the run broke off), or how it was ended.
        cases: each test that was heard.
        uncollected: files whose tests could not be collected, and why.
        signs: of interference with the tests, or of nothing: only what the run without the edit does not show counts.
        plugins: of pytest, each with its file; left out of verdicts, where only the difference counts.
        helpers: files of those that the project or the command named; left out likewise.
        message: why it is not passed, in a sentence.
        stdout: the end of it, as of stderr.
    """

    outcome: Outcome
    limit: LimitName | None = None
    exit_code: int | None = None
    cases: tuple[CaseResult, ...] = ()
    uncollected: tuple[CaseResult, ...] = ()
    signs: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    message: str = ""
    stdout: str = ""
    stderr: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0


class ProjectVerdict(Value, frozen=True, kw_only=True):
    """What the project's tests say of an edit. Tests and edit share a process, so this is never sealed.

    Attributes:
        outcome: passed: what failed passes, and what passed still does; failed; error (rejected, or the run broke off);
            tampered; or how the run was ended.
        evidence: tests (each was heard) or exit_status (only that of the command is known).
        message: why it is not passed; if it is, what that does not show.
        rejection: why the edit was not applied; then nothing was run with it.
        tampering: what was caught.
        fail_to_pass: tests that failed before, as they are now.
        broken: tests that passed before and do not any more; a test that is not there any more is an error.
        num_pass_to_pass: how many passed before.
        before: the run without the edit.
        after: the run with it.
        diff: of the edit, as git writes it; empty if it was rejected.
        changes: files as the edit makes them; None: deleted.
        digests: SHA-256 of each changed file's text before, in hexadecimal; None: it did not exist.
    """

    outcome: Outcome
    tier: Tier
    sealed: bool = False
    evidence: Literal["tests", "exit_status"] = "tests"
    message: str = ""
    rejection: EditRejection | None = None
    tampering: tuple[str, ...] = ()
    fail_to_pass: tuple[CaseResult, ...] = ()
    broken: tuple[CaseResult, ...] = ()
    num_pass_to_pass: int = 0
    before: ProjectRun | None = None
    after: ProjectRun | None = None
    diff: str = ""
    changes: dict[str, str | None] = {}
    digests: dict[str, str | None] = {}

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


Until = Literal["first_pass", "exhaustive"]
Action = Literal["fresh", "repair", "plan"]
TestSource = Literal["given", "generated", "none"]
VerdictStatus = Literal["verified", "self_tested", "failed", "unchecked"]
CandidateState = Literal["passed", "failed", "unconfirmed", "duplicate", "no_code", "repeating", "untested", "cancelled"]


class VisibleTests(Value, frozen=True, kw_only=True):
    """What the answer must satisfy, as whoever asks would show it. Hidden tests are a Judge's, and never come here.

    Attributes:
        code: a pytest module, assert statements, or a function `check(candidate)`.
        cases: calls of the entry point, or runs with a text on stdin.
    """

    code: str = ""
    cases: tuple[Case, ...] = ()


class Route(Value, frozen=True, kw_only=True):
    """How much effort a request is worth.

    Attributes:
        k: candidates per attempt, 1..128.
        temperature: of the first attempt; each further attempt adds `temperature_rise`, up to `max_temperature`.
        is_first_greedy: the first candidate of the first attempt is drawn at temperature 0.
        max_tokens: per candidate, thinking included.
        thinking: as in Prompt.
        num_test_writers: how often the model is asked for tests, where none are given.
    """

    k: int = 5
    max_attempts: int = 5
    temperature: float = 0.6
    temperature_rise: float = 0.1
    max_temperature: float = 1.0
    is_first_greedy: bool = True
    max_tokens: int | None = None
    thinking: bool | None = None
    num_test_writers: int = 4


class Request(Value, frozen=True, kw_only=True):
    """A task to be solved by code.

    Attributes:
        task: in the user's words.
        entry_point: function that is asked for, `name` or `Class.method`; empty: read from tests and task.
        files: further files by relative path, beside the code when it is tested.
        context: what the model should read first.
        history: earlier turns of the conversation; a system message among them replaces ours.
        model: id of the model; empty is the one that is loaded.
        seed: equal seeds draw equal candidates; None draws fresh ones.
        until: first_pass ends with the first candidate that passed; exhaustive makes and tests every candidate of every attempt.
        deadline_s: from the beginning of the run.
        max_tokens: generated tokens of all candidates together.
        max_sandbox_s: time of all tests together.
        route: a fixed one, instead of what a router would choose.
        project: the answer is an edit of this project, judged by its own tests; its `edit` is empty, and `context` has the files.
    """

    task: str
    entry_point: str = ""
    language: str = "python"
    tests: VisibleTests = VisibleTests()
    files: dict[str, str] = {}
    context: tuple[Snippet, ...] = ()
    hint: str = ""
    history: tuple[Message, ...] = ()
    model: str = ""
    seed: int | None = None
    until: Until = "first_pass"
    deadline_s: float | None = None
    max_tokens: int | None = None
    max_sandbox_s: float | None = None
    limits: RunLimits = RunLimits()
    route: Route | None = None
    project: ProjectCheck | None = None


class CandidateRef(Value, frozen=True, kw_only=True):
    """One candidate of one attempt; attempts count from 1, candidates from 0."""

    attempt: int
    index: int


class Candidate(Value, frozen=True, kw_only=True):
    """One generation with its code, and what its tests showed.

    Attributes:
        text: the answer as generated, thinking excluded.
        code: read from it; empty if there is none.
        state: passed (all tests), failed, unconfirmed (passed once, and not again in a fresh interpreter), duplicate (equal
            syntax tree as `duplicate_of`, which was tested), no_code, repeating (stopped in a loop), untested (its run ended
            before), cancelled (another one had passed). The last two say nothing about the code.
        execution: what running it showed; None if it was not run.
        failure: what of it the model may be shown; None if there is nothing, or only held-back tests failed.
        ended_s: since the beginning of the run; likewise tested_s.
    """

    ref: CandidateRef
    text: str = ""
    reasoning: str = ""
    code: str = ""
    finish_reason: FinishReason = "abort"
    num_tokens: int = 0
    mean_logprob: float | None = None
    state: CandidateState = "untested"
    duplicate_of: CandidateRef | None = None
    execution: Execution | None = None
    failure: Failure | None = None
    ended_s: float = 0.0
    tested_s: float | None = None


class Attempt(Value, frozen=True, kw_only=True):
    """One round of candidates, all answers to one prompt.

    Attributes:
        reason: why this action followed, for people.
        repaired: whose failure the prompt shows.
        messages: the prompt.
        sandbox_s: time of its tests, confirmations included.
        num_retries: how often something of ours had to be tried again.
    """

    number: int
    action: Action
    reason: str = ""
    temperature: float = 0.0
    repaired: CandidateRef | None = None
    messages: tuple[Message, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    started_s: float = 0.0
    wall_s: float = 0.0
    sandbox_s: float = 0.0
    num_retries: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens generated by all candidates."""
        return sum(candidate.num_tokens for candidate in self.candidates)


class Verdict(Value, frozen=True, kw_only=True):
    """What was proved about an answer.

    Attributes:
        status: verified (the given tests passed), self_tested (tests that the model wrote passed, and candidates agree on
            them), failed (given tests failed, or the code breaks), unchecked (nothing was tested, or nothing was proved).
        source: where the tests come from; examples in the task count as given.
        num_held_back: tests whose failures the model was never shown.
        sealed: tests and code ran in separate boxes, and values were compared outside.
        is_confirmed: passed once more in a fresh interpreter with another hash seed.
        num_agreeing: candidates that pass the same tests, where the model wrote them.
        p_correct: calibrated probability, once there is a lens that gives one.
    """

    status: VerdictStatus
    source: TestSource = "none"
    tests_run: int = 0
    tests_passed: int = 0
    num_held_back: int = 0
    sealed: bool = False
    tier: Tier | None = None
    is_confirmed: bool = False
    num_agreeing: int = 0
    p_correct: float | None = None


class OurFailure(Value, frozen=True, kw_only=True):
    """What of ours ended a run: code and message of the error. Says nothing about any candidate."""

    code: str
    message: str


class Run(Value, frozen=True, kw_only=True):
    """One solving of a request, closed.

    Attributes:
        entry_point: what was tested.
        checks: what the code was tested with; their `code` is empty.
        answer: the text whose code is `code`.
        winner: the candidate that was chosen; None if there is no code.
        ended_by: passed, agreed, deadline, tokens, sandbox_s, budget (of whoever pays), max_attempts, policy (it gave up), or
            failure (ours).
        num_tokens: generated, tests that the model wrote included.
        change: of a project: what its tests say of the chosen edit, with the diff; `code` is then the edit.
    """

    request: Request
    route: Route
    verdict: Verdict
    attempts: tuple[Attempt, ...] = ()
    entry_point: str = ""
    checks: tuple[Program, ...] = ()
    code: str = ""
    answer: str = ""
    winner: CandidateRef | None = None
    ended_by: str = ""
    failure: OurFailure | None = None
    change: ProjectVerdict | None = None
    num_tokens: int = 0
    sandbox_s: float = 0.0
    wall_s: float = 0.0


class SolveEvent(Value, frozen=True, kw_only=True, tag_field="event"):
    """Base of what happens while a request is solved; `at_s` counts from the beginning. Whoever stores events numbers them."""

    at_s: float = 0.0


class RunStarted(SolveEvent, frozen=True, kw_only=True, tag="run.started"):
    """The route is chosen and the visible tests are read; 0 tests: the model will be asked for some."""

    route: Route
    entry_point: str = ""
    source: TestSource = "none"
    num_tests: int = 0
    num_held_back: int = 0


class SelfTestsWritten(SolveEvent, frozen=True, kw_only=True, tag="tests.written"):
    """The model wrote tests for itself."""

    num_tests: int
    num_tokens: int = 0


class AttemptStarted(SolveEvent, frozen=True, kw_only=True, tag="attempt.started"):
    """A prompt was submitted."""

    attempt: int
    action: Action
    k: int
    temperature: float
    reason: str = ""


class CandidateEnded(SolveEvent, frozen=True, kw_only=True, tag="candidate.ended"):
    """A candidate was generated, and its code read."""

    candidate: CandidateRef
    num_tokens: int
    state: CandidateState


class CandidateTested(SolveEvent, frozen=True, kw_only=True, tag="candidate.tested"):
    """A candidate was run; `message` is what it failed with."""

    candidate: CandidateRef
    state: CandidateState
    tests_run: int = 0
    tests_passed: int = 0
    message: str = ""


class WorkRetried(SolveEvent, frozen=True, kw_only=True, tag="work.retried"):
    """Something of ours failed and is tried again; says nothing about any candidate."""

    what: str
    failure: OurFailure
    after_s: float


class AttemptEnded(SolveEvent, frozen=True, kw_only=True, tag="attempt.ended"):
    """A round of candidates is done; the attempt as it will stand in the Run."""

    attempt: Attempt


class RunClosed(SolveEvent, frozen=True, kw_only=True, tag="run.closed"):
    """The last event: everything that was done, and the verdict."""

    run: Run


Event = RunStarted | SelfTestsWritten | AttemptStarted | CandidateEnded | CandidateTested | WorkRetried | AttemptEnded | RunClosed
