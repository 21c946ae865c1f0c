"""Messages with what they ask for, written by hand; `python -m tests.ralph.classified` measures the rule on them.

The second half of each list was written after the rule, and is what its figure is quoted from.
"""

from __future__ import annotations

from atlas.ralph.classify import asks_for_code

CODE = [
    "Write f(xs). Take the numbers of the list, keep the even ones, return their sum.",
    "Write a Python function that reverses a string.",
    "Implement binary search.\n\n```python\ndef search(xs: list[int], x: int) -> int:\n```",
    "Define the function count_vowels(s).",
    "Please write a program that reads n and prints the first n primes.",
    'def has_close(numbers, by):\n    """Check for close numbers.\n    >>> has_close([1.0], 0.5)\n    False\n    """\n',
    "Fix this:\n```python\ndef f(x):\n    return x +\n```",
    "Given a list of words, return the longest one, in Python.",
    "Create a class Stack with push, pop and peek.",
    "n integers are given.\n\nInput\n3\n1 2 3\n\nOutput\n6\n",
    "I need a script to rename files by date.",
    "Can you write a function is_palindrome(s)?",
    "Refactor this function so that it is faster:\n```python\ndef f(xs):\n    return sorted(xs)[0]\n```",
    "Write a decorator that caches results for ten seconds.",
    "implement an LRU cache class in python",
    "Write a regex that matches ISO dates, as a function match_date(s).",
    "Give me code for the Levenshtein distance.",
    "How do I write a function that flattens nested lists?",
    "Complete the following:\n\ndef add(a, b):\n",
    "write fizzbuzz in python and print the result for 1..15",
    "Write a generator that yields Fibonacci numbers.",
    "Make a function that merges two sorted lists.",
    "Translate to Python:\n```js\nconst f = x => x + 1\n```",
    "Sort a dictionary by value in Python.",
    "Define a function named rotate(matrix) that turns it clockwise.",
    "Write code to validate IPv4 addresses.",
    "Implement Dijkstra's algorithm.",
    "Write a coroutine that downloads three pages at once.",
    "Optimize this code:\n```\nfor i in range(len(xs)):\n    print(xs[i])\n```",
    "Write an algorithm to find the median of two sorted arrays.",
    # written after the rule
    "Hey, could you implement quicksort for me?",
    "Build a small calculator program that understands + - * / and brackets",
    "roman_to_int(s) should turn Roman numerals into integers. Implement it.",
    "Develop a method that computes the transpose of a matrix",
    "I want a function which tells whether two words are anagrams",
    "Write a solution for: given an integer array, return indices of the two numbers that add up to the target.",
    "Count the islands in a grid using Python.",
    "In python, find all duplicates in a list",
    "Debug:\n```python\ndef avg(xs): return sum(xs) / len(xs)\n```\nIt fails on an empty list.",
    "generate python code for matrix multiplication without numpy",
    "Write unit-tested code that parses CSV lines with quotes",
    "Produce a Python script which prints a multiplication table",
    "Print the sum of two numbers.\nInput: two integers\nSample Input:\n1 2\nSample Output:\n3",
    "Convert this to a list comprehension:\n```python\nout = []\nfor x in xs:\n    out.append(x * 2)\n```",
    "Provide an implementation of a trie class with insert and search",
    "Write `clamp(x, lo, hi)`.",
    "A function that given n returns the nth Catalan number, please.",
    "make me a password generator",
    "Solve the N-queens problem in Python",
    "write a lambda that squares its argument",
    "Design a data structure class supporting O(1) insert, delete and getRandom.",
    "simulate a bank queue with python",
    "Write a class for complex numbers with addition and multiplication.",
    "You are given a string s. Return the length of its longest substring without repeats. Use Python.",
    "def is_even(n):\n    # complete this\n",
    "finish this function\n```python\ndef gcd(a, b):\n    ...\n```",
    "Write a Python one-liner to transpose a list of lists",
    "Create an algorithm that schedules meetings into the fewest rooms",
    "need a parser for arithmetic expressions",
    "speed up this code please\n```python\ndef fib(n): return n if n < 2 else fib(n-1) + fib(n-2)\n```",
    "Code a tic-tac-toe winner check",
    "write a function in python to check if a number is prime",
]

OTHER = [
    "Hello!",
    "What is the capital of France?",
    "Explain how quicksort works.",
    "Write a poem about autumn.",
    "What does this function do?\n```python\ndef f(x): return x * 2\n```",
    "Why is Python slow?",
    "Translate 'good morning' into German.",
    "Summarize this article about programming languages.",
    "What's the difference between a list and a tuple?",
    "Thanks, that worked!",
    "Write an email to my landlord about the heating.",
    "Who invented Python?",
    "How many functions does the standard library have?",
    "Should I learn Rust or Go?",
    "Give me a recipe for pancakes.",
    "Tell me a joke about programmers.",
    "Describe the observer pattern.",
    "Is this code idiomatic?\n```python\nx = list(range(3))\n```",
    "Write documentation for this module.",
    "Compare Django and Flask.",
    "What is 17 * 23?",
    "Plan a trip to Lisbon for three days.",
    "Review my essay on climate.",
    "List the design patterns of the Gang of Four.",
    "Can you explain decorators?",
    "Write a commit message for this change.",
    "Which database should we use?",
    "How are you today?",
    "Describe what a regex is.",
    "Write a SQL query that counts users by country.",
    # written after the rule
    "hi there",
    "I feel tired, any advice?",
    "Recommend three books on algorithms.",
    "What are good names for a dog?",
    "Write a short story in which a robot learns to paint.",
    "Do you know Python?",
    "When was the first program written?",
    "Convert 30 degrees Celsius to Fahrenheit.",
    "Explain this traceback:\n```\nKeyError: 'a'\n```",
    "Give me feedback on my resume as a developer.",
    "How does garbage collection work in Python?",
    "Write a cover letter for a position as a Python developer.",
    "Make a list of healthy breakfasts.",
    "Correct the grammar: 'He go to school.'",
    "What is the time complexity of merge sort?",
    "Create a workout plan.",
    "Where can I download Python?",
    "Write a Dockerfile for a Flask app.",
    "Count to ten in French.",
    "Could you describe how Dijkstra's algorithm finds shortest paths?",
    "Fix my sleep schedule.",
    "Define entropy.",
    "Sort these words by length: pear, fig, banana.",
    "Find a synonym for 'quick'.",
    "Tell me about the history of the Unix shell.",
    "Are there any bugs in Python 3.11?",
    "Write a tweet announcing our new release.",
    "Generate ideas for a birthday party.",
    "Discuss tabs versus spaces.",
    "I need help deciding which laptop to buy.",
    "Design a logo for a bakery.",
    "Build me a reading list about the Roman Empire.",
]

NUM_BEFORE = 30


def measure() -> tuple[int, int, int, int]:
    """Of the messages written after the rule: code found and how much there is, others let pass and how many there are."""
    code, other = CODE[NUM_BEFORE:], OTHER[NUM_BEFORE:]
    return sum(map(asks_for_code, code)), len(code), sum(not asks_for_code(text) for text in other), len(other)


if __name__ == "__main__":
    found, num_code, passed, num_other = measure()
    print(f"found {found} of {num_code} coding tasks; let {passed} of {num_other} others pass")
    print("missed:", [text[:60] for text in CODE if not asks_for_code(text)])
    print("taken:", [text[:60] for text in OTHER if asks_for_code(text)])
