"""The command `jigclu`, and what all command lines of the suite share.

A package of its own, because `jigclu run` and `jigclu report` need orchestrate and reports, which import each other in one
direction only. Nothing outside the standard library is imported before a subcommand is chosen.
"""
