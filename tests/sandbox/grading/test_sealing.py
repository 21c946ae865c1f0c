"""Which tests can be judged with the code in another box."""

from __future__ import annotations

import pytest

from atlas.sandbox.sealing import can_seal, can_seal_checker, expected_tests, has_check


def read(text: str) -> dict[str, str]:
    """Sources by their headings."""
    parts = (part.partition("\n") for part in text.split("## ")[1:])
    return {heading: source for heading, _, source in parts}


SEALED = read("""
## function
from solution import f
def test(): assert f([1], key='a') == {1: (2,)}
## renamed
from solution import f as g
def test(): assert g(1) == 2
## module
import solution
def test(): assert solution.f(1) == solution.LIMIT
## star
from solution import *
def test(): assert f(1) == 2
## exception
import pytest
from solution import f, TooBig
def test():
    with pytest.raises(TooBig, match='big'): f(1)
## raises call
import pytest
from solution import f
def test(): pytest.raises(ValueError, f, -1)
## parametrize
import pytest
from solution import f
@pytest.mark.parametrize('a, b', [(1, 2)])
def test(a, b): assert f(a) == b
## class
from solution import Stack
def test():
    s = Stack()
    s.push(1)
    assert s.pop() == 1 and len(s) == 0 and 2 not in s
## fixture
import pytest
from solution import Stack
@pytest.fixture
def s(): return Stack()
def test(s): assert s.size == 0
## setup
from solution import A
class TestA:
    def setup_method(self): self.a = A(3)
    def test(self): assert self.a.get() == 3
## unittest
import unittest
from solution import f
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1), 2)
## item
from solution import Grid
def test():
    g = Grid(2)
    g[0] = 5
    assert g[0] == 5
    assert str(g) == 'x'
## iteration
from solution import Tree
def test():
    t = Tree([2, 1])
    assert list(t) == [1, 2]
    assert [x for x in t] == [1, 2]
## capsys
from solution import f
def test(capsys):
    f()
    assert capsys.readouterr().out == 'x'
## generator
from solution import g
def test(): assert list(g(3)) == [0, 1, 2]
## sorted by key
from solution import f
def test(): assert sorted(f(3), key=lambda x: -x) == [1]
## isinstance of a result
from solution import f
def test(): assert isinstance(f(1), list) and f(1) is not None
## helper
from solution import f
def check(x): assert f(x) == x
def test(): check(1)
## path
import os, sys
sys.path.insert(0, os.path.dirname(__file__))
from solution import f
def test(): assert f(1)
## changed before
from solution import f
def test():
    x = [1]
    x.append(2)
    assert f(x) == 3
## changed after
from solution import deep_copy
def test():
    d = {'a': [1]}
    c = deep_copy(d)
    c['a'].append(2)
    assert d == {'a': [1]}
## main
import unittest
from solution import f
def test(): assert f()
if __name__ == '__main__':
    unittest.main()
## does not parse
def test(:
## imports nothing
def test(): assert True
""")
NOT_SEALED = read("""
## subclass: defines the class
from solution import Base
class Mine(Base): pass
def test(): Mine()
## isinstance of the class: makes a Node
from solution import Node
def test(): assert isinstance(Node(), Node)
## class as value: looks for .LIMIT
from solution import A
def test(): assert A.LIMIT == 3
## instances compared: instance of the code's class
from solution import V
def test(): assert V(1) == V(1)
## arithmetic: instance of the code's class
from solution import V
def test():
    v = V(1)
    assert v + v
## instance passed: instance of the code's class
from solution import V
def test():
    v = V(1)
    assert v.add(V(2)) is None
## instance set: instance of the code's class
from solution import V
def test():
    v = V()
    v.x = 3
## instance kept: instance of the code's class
from solution import V
def test():
    vs = [V(), V()]
## context manager: instance of the code's class
from solution import V
def test():
    with V() as v: pass
## patched: uses unittest.mock
from unittest import mock
import solution
## patched module: imports unittest.mock
import unittest.mock
from solution import f
## monkeypatch: takes the fixture monkeypatch
import solution
def test(monkeypatch): assert solution.f()
## file: takes the fixture tmp_path
from solution import f
def test(tmp_path): assert f(str(tmp_path))
## inspect: imports inspect
import inspect
from solution import f
## docstring: looks at __doc__
from solution import f
def test(): assert f.__doc__
## callback: makes a function
from solution import f
def test(): assert f(lambda x: x)
## named callback: passes the function g on
from solution import f
def g(): pass
def test(): assert f(g)
## inner callback: passes the function g on
from solution import f
def test():
    def g(): pass
    assert f(g)
## built-in callback: may pass len
from solution import f
def test(): assert f(len, [1])
## type in a table: may pass int
import pytest
from solution import f
@pytest.mark.parametrize('t', [int])
def test(t): assert f(t)
## code as value: otherwise than by calling
from solution import f, g
def test(): assert f(g)
## decorator: decorates with memo
from solution import memo
@memo
def g(): pass
def test(): assert g() is None
## called result: calls what the code returned
from solution import make
def test():
    c = make()
    assert c() == 1
## object result: looks for .name
from solution import make
def test(): assert make().name == 'x'
## object attribute: looks for .value
from solution import L
def test():
    l = L()
    assert l.head.value == 1
## object in a loop: looks for .name
from solution import f
def test():
    for x in f(): assert x.name
## identity: the same one
from solution import f
def test():
    x = []
    assert f(x) is not x
## assertIs: same one
import unittest
from solution import f
class T(unittest.TestCase):
    def test(self): self.assertIs(f(1), f(1))
## id: uses id
from solution import f
def test(): assert id(f(1))
## kept list: changes x
from solution import S
def test():
    s = S()
    x = s.items()
    x.append(1)
    assert len(s) == 0
## kept argument: changes x
from solution import S
def test():
    x = [1]
    s = S(x)
    x[0] = 2
    assert s.get() == 1
## kept in a loop: changes x
from solution import f
def test():
    x = []
    for i in (1, 2):
        x.append(i)
        assert f(x)
## async: is asynchronous
from solution import f
async def test(): assert await f()
## warnings: uses pytest.warns
import pytest
from solution import f
def test():
    with pytest.warns(UserWarning): f()
## numpy: imports numpy
import numpy as np
from solution import f
## subprocess: imports subprocess
import subprocess
from solution import f
## os: uses os.remove
import os
from solution import f
def test(): os.remove(f())
## modules: uses sys.modules
import sys
from solution import f
def test(): sys.modules['solution']
## eval: uses eval
from solution import f
def test(): assert eval('f(1)')
## open: uses open
from solution import f
def test(): open('x')
## module as value: as a value
import solution
def test(): assert hasattr(solution, 'f')
## rebound: another meaning
from solution import f
f = str
def test(): assert f(1)
## exception made: makes a MyError
from solution import MyError
def test(): assert MyError(3).code == 3
## cache: uses .cache_clear
from solution import f
def test(): f.cache_clear()
## unknown fixture: takes the fixture client
from solution import f
def test(client): assert f(client)
""")


@pytest.mark.parametrize("name", SEALED)
def test_tests_that_pass_plain_values_are_sealed(name: str) -> None:
    sealing = can_seal(SEALED[name])
    assert sealing.ok, sealing.reason


@pytest.mark.parametrize("name", NOT_SEALED)
def test_tests_that_need_more_are_not_sealed_and_it_is_said_why(name: str) -> None:
    sealing = can_seal(NOT_SEALED[name])
    assert not sealing.ok
    assert name.partition(": ")[2] in sealing.reason
    assert sealing.reason.startswith("line ")


def test_what_the_tests_want_of_the_code_is_sorted_by_its_kind() -> None:
    source = """
import pytest
from solution import add, Stack, EmptyError, MAX_SIZE, LRU, Odd
def test():
    s, c = 0, 0
    stack = Stack(MAX_SIZE)
    cache = LRU(2)
    with pytest.raises(EmptyError): stack.pop()
    with pytest.raises(Odd): add(1, 2)
"""
    assert can_seal(source).names == {
        "add": "function",
        "Stack": "class",
        "EmptyError": "exception",
        "MAX_SIZE": "constant",
        "LRU": "class",
        "Odd": "exception",
    }


def test_a_checker_gets_the_entry_point_and_brings_the_rest() -> None:
    source = "def helper(x): return x\ndef check(candidate):\n    assert candidate(helper(1)) == 2 and other(3)"
    sealing = can_seal_checker(source, "f")
    assert sealing.ok
    assert sealing.names == {}


def test_a_script_takes_its_free_names_from_the_code() -> None:
    sealing = can_seal_checker("assert f(g(1)) == LIMIT\nassert sorted(f(2)) == [1]", "f")
    assert sealing.ok
    assert sealing.names == {"g": "function", "LIMIT": "constant"}


def test_a_script_that_passes_the_entry_point_on_is_not_sealed() -> None:
    assert "otherwise than by calling it" in can_seal_checker("assert apply(f) == 2", "f").reason


@pytest.mark.parametrize(
    ("source", "found"), [("def check(candidate): pass", True), ("assert f() == 1", False), ("def check(:", False)]
)
def test_a_checker_is_known_by_its_function(source: str, found: bool) -> None:
    assert has_check(source) is found


def test_the_tests_of_a_file_are_known_without_running_it() -> None:
    source = """
import unittest
def test_a(): pass
def helper(): pass
class TestB:
    def test_c(self): pass
    def other(self): pass
class D(unittest.TestCase):
    def test_e(self): pass
class TestF:
    def __init__(self): pass
    def test_g(self): pass
"""
    assert expected_tests(source) == ["test_a", "TestB::test_c", "D::test_e"]


@pytest.mark.parametrize(
    "source", ["(" * 5000, "-" * 100_000 + "1", "x = " + "[" * 90 + "]" * 90, "a" + ".a" * 50_000, "\x00", "f" + "()" * 20_000]
)
def test_hostile_tests_do_not_harm_who_reads_them(source: str) -> None:
    can_seal(source)
    can_seal_checker(source, "f")
    expected_tests(source)
