"""BLEU, ROUGE-L, CIDEr-D and CIDEr of tokenized captions; `registry.py` lists them, `scoring.py` computes them."""
