"""Compare methods over seeds: a table, a report, and a verdict that takes no noise for skill.

``mtl-compare`` is the command, see :mod:`mtl_plugins.compare.command`. Beside the standard library
the package needs NumPy, SciPy and Matplotlib, and Rich for a live table: the extra ``compare``.
"""
