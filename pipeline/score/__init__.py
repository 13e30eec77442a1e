"""How good the captions are: metrics, naive answers to compare with, and a gallery to look at."""
