"""flowcore: the mathematics of flow matching, and the interface a plugin is written against.

Time runs from 0 (source, noise) to 1 (data) everywhere. Importing this package costs nothing; torch is imported by
the submodules that compute: ``flowcore.paths``, ``flowcore.field``, ``flowcore.solvers`` and their neighbours.
"""

__version__ = "0.1.0"
