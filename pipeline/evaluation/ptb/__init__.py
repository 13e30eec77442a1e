"""The Penn Treebank tokenizer that coco-caption scores with, without Java."""
