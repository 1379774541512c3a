"""The Detectron2 transfer stage (Table 4), behind the same contract as a jigclu stage."""
