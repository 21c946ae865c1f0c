"""Functions people ask for first. They are memorised, not composed, and are no part of the benchmark."""

from __future__ import annotations

from typing import NamedTuple


class Classic(NamedTuple):
    """A well-known function: its signature, what it does in two wordings, its body's lines."""

    signature: str
    wordings: tuple[str, str]
    body: tuple[str, ...]

    @property
    def source(self) -> str:
        return f"def {self.signature}:\n" + "".join(f"    {line}\n" for line in self.body)


CLASSICS: tuple[Classic, ...] = (
    Classic("add(a, b)", ("adds two numbers", "returns the sum of a and b"), ("return a + b",)),
    Classic("multiply(a, b)", ("multiplies two numbers", "returns the product of a and b"), ("return a * b",)),
    Classic("square(x)", ("squares a number", "returns the square of x"), ("return x * x",)),
    Classic("is_even(n)", ("checks if a number is even", "returns True if n is even"), ("return n % 2 == 0",)),
    Classic("is_odd(n)", ("checks if a number is odd", "returns True if n is odd"), ("return n % 2 == 1",)),
    Classic(
        "is_prime(n)",
        ("checks if a number is prime", "returns True if n is a prime number"),
        ("if n < 2:", "    return False", "return all(n % d != 0 for d in range(2, int(n ** 0.5) + 1))"),
    ),
    Classic(
        "factorial(n)",
        ("computes the factorial of a number", "returns the factorial of n"),
        ("result = 1", "for i in range(2, n + 1):", "    result *= i", "return result"),
    ),
    Classic(
        "fibonacci(n)",
        ("computes the nth Fibonacci number", "returns the n-th Fibonacci number"),
        ("a, b = 0, 1", "for _ in range(n):", "    a, b = b, a + b", "return a"),
    ),
    Classic(
        "gcd(a, b)",
        ("computes the greatest common divisor of two numbers", "returns the gcd of a and b"),
        ("while b:", "    a, b = b, a % b", "return a"),
    ),
    Classic("reverse_string(s)", ("reverses a string", "returns s reversed"), ("return s[::-1]",)),
    Classic("reverse_list(xs)", ("reverses a list", "returns the list xs in reverse order"), ("return xs[::-1]",)),
    Classic(
        "is_palindrome(s)",
        ("checks if a string is a palindrome", "returns True if s reads the same backwards"),
        ("return s == s[::-1]",),
    ),
    Classic(
        "count_vowels(s)",
        ("counts the vowels in a string", "returns the number of vowels in s"),
        ("return sum(c in 'aeiou' for c in s.lower())",),
    ),
    Classic("count_words(s)", ("counts the words in a string", "returns how many words s has"), ("return len(s.split())",)),
    Classic("sum_list(xs)", ("sums a list of numbers", "returns the sum of the list xs"), ("return sum(xs)",)),
    Classic("find_max(xs)", ("finds the largest number in a list", "returns the maximum of xs"), ("return max(xs)",)),
    Classic("find_min(xs)", ("finds the smallest number in a list", "returns the minimum of xs"), ("return min(xs)",)),
    Classic("average(xs)", ("computes the average of a list", "returns the mean of xs"), ("return sum(xs) / len(xs)",)),
    Classic("sort_list(xs)", ("sorts a list", "returns xs sorted ascending"), ("return sorted(xs)",)),
    Classic(
        "unique(xs)",
        ("removes duplicates from a list", "returns xs without duplicates"),
        ("return list(dict.fromkeys(xs))",),
    ),
    Classic(
        "digit_sum(n)",
        ("sums the digits of a number", "returns the sum of the digits of n"),
        ("return sum(int(c) for c in str(n))",),
    ),
    Classic(
        "fizzbuzz(n)",
        ("plays FizzBuzz up to n", "returns the FizzBuzz list from 1 to n"),
        (
            "result = []",
            "for i in range(1, n + 1):",
            "    word = ('Fizz' if i % 3 == 0 else '') + ('Buzz' if i % 5 == 0 else '')",
            "    result.append(word or str(i))",
            "return result",
        ),
    ),
    Classic(
        "flatten(xss)",
        ("flattens a list of lists", "returns one flat list from a list of lists"),
        ("return [x for xs in xss for x in xs]",),
    ),
    Classic(
        "binary_search(xs, target)",
        ("does a binary search in a sorted list", "returns the index of target in sorted xs or -1"),
        (
            "low, high = 0, len(xs) - 1",
            "while low <= high:",
            "    middle = (low + high) // 2",
            "    if xs[middle] == target:",
            "        return middle",
            "    if xs[middle] < target:",
            "        low = middle + 1",
            "    else:",
            "        high = middle - 1",
            "return -1",
        ),
    ),
    Classic("hello()", ("prints hello world", "prints 'Hello, world!'"), ("print('Hello, world!')",)),
    Classic(
        "celsius(f)", ("converts Fahrenheit to Celsius", "converts f from Fahrenheit to Celsius"), ("return (f - 32) * 5 / 9",)
    ),
    Classic(
        "char_count(s)",
        ("counts each character of a string", "returns a dict from character to count in s"),
        ("return {c: s.count(c) for c in s}",),
    ),
    Classic("to_upper(s)", ("converts a string to upper case", "returns s in upper case"), ("return s.upper()",)),
)
ASKS = (
    "Write a function {signature} that {what}.",
    "Write a Python function that {what}.",
    "Write a Python function {signature} that {what}.",
    "write a function that {what}",
    "Can you write a Python function that {what}?",
    "Implement {signature}: it {what}.",
)
