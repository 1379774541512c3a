"""The command `jigclu`, and what all command lines of the suite share.

A package of its own: `jigclu` imports neither orchestrate nor reports, and orchestrate does not import reports. Nothing
outside the standard library is imported before a subcommand is chosen.
"""
