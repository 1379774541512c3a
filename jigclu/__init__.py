"""Jigsaw Clustering (Chen, Liu, Jia; CVPR 2021): the method, its training and its evaluation.

Importing this package imports no torch, so that planning stays quick; its sub-packages do, except config.
"""

__version__ = "0.1.0"
