"""Jigsaw Clustering (Chen, Liu, Jia; CVPR 2021): the method, its training and its evaluation.

Importing this package imports no torch, so that planning stays quick; the rooms below do.
"""

__version__ = "0.1.0"
