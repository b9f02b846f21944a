"""`python -m looptool_jax.cli`: the console script where it is not on the path."""

from looptool_jax.cli import main

main()
