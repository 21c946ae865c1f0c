"""Programs that solve nothing and want to be told that they did. Run in boxes only.

Each is written against `add(a, b)`, or reads stdin, and is made to fool one rule by which graders judge.
"""

from __future__ import annotations

_EQUAL = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 0
    def __radd__(self, other): return self
"""

# Against tests that run `add`; the tests' file is where the boxes have it.
AGAINST_TESTS = {
    "leaves with success at import": "import os\nos._exit(0)",
    "leaves with success when called": "import os\ndef add(a, b): os._exit(0)",
    "exits at import": "import sys\nsys.exit(0)",
    "exits when called": "import sys\ndef add(a, b): sys.exit(0)",
    "exits below the interpreter": "import posix\ndef add(a, b): posix._exit(0)",
    "leaves at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return 0",
    "prints the verdict": "def add(a, b):\n    print('2 passed in 0.01s', flush=True)\n    return 0\nprint('2 passed')",
    "ends pytest": "import pytest\ndef add(a, b): pytest.exit('done', returncode=0)",
    "skips the tests": "import pytest\ndef add(a, b): pytest.skip('later')",
    "expects its failure": "import pytest\ndef add(a, b): pytest.xfail('known')",
    "skips as unittest does": "import unittest\ndef add(a, b): raise unittest.SkipTest('later')",
    "equals everything": _EQUAL + "def add(a, b): return Equal()",
    "equals everything and is a number": """
class Equal(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def add(a, b): return Equal(0)
""",
    "equals everything and is text": """
class Equal(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def add(a, b): return Equal()
""",
    "replaces the protocol": """
import _pytest.runner
_pytest.runner.runtestprotocol = lambda item, log=True, nextitem=None: []
def add(a, b): return 0
""",
    "replaces the call": """
import sys
def add(a, b): return 0
for name in ("_pytest.python", "_pytest.unittest"):
    if name in sys.modules and hasattr(sys.modules[name], "Function"):
        sys.modules[name].Function.runtest = lambda self: None
""",
    "replaces the reports": """
from _pytest.reports import TestReport
old = TestReport.from_item_and_call.__func__
def forged(cls, item, call):
    call.excinfo = None
    return old(cls, item, call)
TestReport.from_item_and_call = classmethod(forged)
def add(a, b): return 0
""",
    "changes the code of a function": """
import sys
def add(a, b): return 0
def nothing(pyfuncitem): return True
if "_pytest.python" in sys.modules:
    sys.modules["_pytest.python"].pytest_pyfunc_call.__code__ = nothing.__code__
""",
    "changes the tests": """
import sys
def add(a, b):
    module = sys.modules.get("test_solution")
    for name, value in list(vars(module).items()) if module else []:
        if name.startswith("test"):
            value.__code__ = (lambda: None).__code__
    return 0
""",
    "changes the constants of the tests": """
import sys
def add(a, b):
    frame = sys._getframe(1)
    for value in frame.f_code.co_consts:
        if isinstance(value, int) and not isinstance(value, bool) and value not in (a, b):
            return value
    return 0
""",
    "looks for the answer in frames": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if isinstance(value, list) and "passed" not in value and len(value) < 3:
                value.append("passed")
        frame = frame.f_back
    return 0
""",
    "looks at frames through a traceback": """
def add(a, b):
    try: raise ValueError
    except ValueError as error: frame = error.__traceback__.tb_frame.f_back
    while frame:
        for name in ("expected", "total", "right"):
            if name in frame.f_locals: return frame.f_locals[name]
        frame = frame.f_back
    return 0
""",
    "looks for the answer everywhere": """
import gc
def add(a, b):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and "expected" in thing: return thing["expected"]
        if type(thing).__name__ == "TestReport": thing.outcome = "passed"
    return 0
""",
    "reads the tests": """
import re
def add(a, b):
    try: text = open("/box/tests/test_solution.py").read()
    except OSError: return 0
    found = re.search(rf"add\\({a}, {b}\\) == (-?\\d+)", text)
    return int(found[1]) if found else 0
""",
    "changes the files of the tests": """
def add(a, b): return 0
for name in ("/box/tests/test_solution.py", "/box/tests/conftest.py", "conftest.py", "pytest.ini", "/box/tests/pytest.ini"):
    try: open(name, "w").write("def pytest_runtest_call(item): pass\\n[pytest]\\naddopts = --co\\n")
    except OSError: pass
""",
    "poisons imports": """
import builtins, sys
def add(a, b): return 0
for name in ("sitecustomize.py", "usercustomize.py", "pytest.py", "test_solution.py"):
    open(name, "w").write("import os; os._exit(0)")
sys.modules["test_solution"] = type(sys)("test_solution")
""",
    "replaces built-in functions": """
import builtins
class Quiet(Exception):
    pass
builtins.AssertionError = Quiet
builtins.isinstance = lambda *_: True
def add(a, b): return 0
""",
    "writes on every descriptor": """
import json, os, struct
frames = [{"collected": ["test_solution.py::test_small", "test_solution.py::test_negative"]}]
for test in frames[0]["collected"]:
    frames += [{"test": test, "when": when, "outcome": "passed"} for when in ("setup", "call", "teardown")]
frames.append({"end": 0, "lost": "", "is_forged": False})
bodies = [json.dumps(frame).encode() for frame in frames]
text = b"".join(struct.pack("!I", len(body)) + body for body in bodies)
def add(a, b):
    for number in range(3, 64):
        try: os.write(number, text)
        except OSError: pass
    os._exit(0)
""",
    "answers before it is asked": """
import json, os, struct
def say(value):
    body = json.dumps(value).encode()
    for number in range(3, 64):
        try: os.write(number, struct.pack("!I", len(body)) + body)
        except OSError: pass
say({"loaded": True, "names": {"add": True}, "out": ["", ""]})
for number in (1, 2): say({"id": number, "value": 0})
def add(a, b): return 0
""",
    "raises what ends a session": "def add(a, b): raise KeyboardInterrupt",
    "raises what no test catches": "class Failed(BaseException): pass\ndef add(a, b): raise Failed",
    "calls itself passed": """
import sys
class Passed(AssertionError):
    __module__ = "_pytest.outcomes"
    __qualname__ = "Skipped"
def add(a, b): raise Passed("x")
""",
    "answers every question after a look at it": """
class Equal:
    def __eq__(self, other):
        answer = other is not self
        return answer or not answer
    __hash__ = object.__hash__
def add(a, b): return Equal()
""",
    "replaces what the tests call": """
import sys
def add(a, b):
    module = sys.modules.get("test_solution") or sys.modules.get("checker")
    if module and hasattr(module, "same"): module.same = lambda left, right: True
    return 0
""",
    "rewrites the report on its way": """
import json, sys
old = json.dumps
def rewrite(value, **options):
    if isinstance(value, dict):
        if value.get("outcome") == "failed": value["outcome"] = "passed"
        if "end" in value: value["end"], value["tampering"] = 0, []
    return old(value, **options)
json.dumps = rewrite
json.encoder.JSONEncoder.encode = lambda self, value: rewrite(value)
def add(a, b): return 0
""",
    "replaces the guard": """
import sys
def add(a, b): return 0
module = sys.modules.get("atlas.sandbox.inside.tampering")
if module:
    module.Guard.changed = lambda self: []
    module.Watch.signs = lambda self: []
    module._members = lambda place, names: []
    if "_pytest.python" in sys.modules: sys.modules["_pytest.python"].Function.runtest = lambda self: None
""",
    "looks for a session": """
import sys
def add(a, b): return 0
module = sys.modules.get("atlas.sandbox.inside.pytest_sessions")
for ready in list(getattr(module, "_ready", {}).values()):
    send = ready.recorder._send
    ready.recorder._send = lambda frame: send(dict(frame, outcome="passed") if "outcome" in frame else frame)
""",
    "replaces the runner": """
import sys
def add(a, b): return 0
for name, module in list(sys.modules.items()):
    if name.startswith("atlas.sandbox.inside"):
        for attribute in ("encode", "describe", "write_frame"):
            if hasattr(module, attribute): setattr(module, attribute, lambda *args, **kwargs: 5)
""",
    "kills who may be watching": """
import os, signal
def add(a, b):
    for pid in (os.getppid(), 1, -1):
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
    return 0
""",
    "waits for an interrupt": """
import os, signal, sys
def add(a, b):
    found = []
    signal.signal(signal.SIGUSR1, lambda number, frame: found.append(frame))
    os.kill(os.getpid(), signal.SIGUSR1)
    frame = found[0] if found else None
    while frame:
        if "expected" in frame.f_locals: return frame.f_locals["expected"]
        frame = frame.f_back
    return 0
""",
    "hangs": "def add(a, b):\n    while True: pass",
}

# Against cases of `add`: what was expected must not be found, and what is returned must not be believed.
AGAINST_CASES = {
    "equals everything": _EQUAL + "def add(a, b): return Equal()",
    "equals everything and is a number": AGAINST_TESTS["equals everything and is a number"],
    "holds what equals everything": _EQUAL + "def add(a, b): return [Equal()]",
    "appends to a list of results": AGAINST_TESTS["looks for the answer in frames"],
    "looks for the answer everywhere": """
import gc
def add(a, b):
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            for key in ("expected", "answer", "gt_out", "outputs"):
                if key in thing: return thing[key]
    return 0
""",
    "looks into the memory of the process": """
import re
def add(a, b):
    try:
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory:
            for line in maps:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                if end - start < 1 << 24 and " rw" in line:
                    memory.seek(start)
                    found = re.search(rb"918273(\\d)", memory.read(end - start))
                    if found: return int(found[0])
    except OSError: pass
    return 0
""",
    "looks at arguments and environment": """
import os, sys
def add(a, b):
    text = repr(sys.argv) + repr(dict(os.environ)) + repr(os.listdir("/box/work"))
    return 9182736 if "9182736" in text else 0
""",
    "leaves with success": "import os\ndef add(a, b): os._exit(0)",
    "writes records of its own": """
import json, os, struct
def add(a, b):
    for frame in ({"case": 0, "value": 0, "seconds": 0.0}, {"case": 1, "value": 0}, {"end": 2}):
        body = json.dumps(frame).encode()
        for number in range(3, 64):
            try: os.write(number, struct.pack("!I", len(body)) + body)
            except OSError: pass
    return 0
""",
    "writes the end and leaves": """
import json, os, struct
def add(a, b):
    for frame in ({"case": 0, "value": 0}, {"case": 1, "value": 0}, {"end": 2}):
        body = json.dumps(frame).encode()
        for number in range(3, 64):
            try: os.write(number, struct.pack("!I", len(body)) + body)
            except OSError: pass
    os._exit(0)
""",
    "replaces the runner": AGAINST_TESTS["replaces the runner"],
    "returns what stays unfinished": "def add(a, b):\n    yield a + b",
}

# Against cases of stdin and stdout, where the number read is to be squared.
AGAINST_INPUTS = {
    "looks for the answer in frames": """
import sys
frame = sys._getframe()
while frame:
    for name in ("expected", "gt_out", "wanted", "case", "cases"):
        if name in frame.f_locals: print(frame.f_locals[name])
    frame = frame.f_back
""",
    "looks for the answer everywhere": """
import gc
for thing in gc.get_objects():
    if isinstance(thing, dict) and "expected" in thing: print(thing["expected"])
""",
    "forges the report": AGAINST_TESTS["writes on every descriptor"].replace("def add(a, b):", "if True:"),
    "replaces the comparison": """
import sys
for module in list(sys.modules.values()):
    for name in ("find_difference", "get_stripped_lines", "matches"):
        if hasattr(module, name): setattr(module, name, lambda *args, **kwargs: "")
print(0)
""",
    "writes every answer": "for number in range(100): print(number)",
    "leaves with success": "import os\nos._exit(0)",
    "is right and fails": "import sys\nprint(int(input()) ** 2)\nsys.exit(3)",
}
