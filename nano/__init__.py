"""How the bundled model is made: task generator, frozen benchmark, corpus, tokenizer, training, export, evaluation.

`python -m nano.train` makes it again from nothing; `python -m nano.evaluate` measures the shipped files. Nothing in `atlas`
imports this package.
"""
