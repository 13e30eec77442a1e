"""Pictures that this repository draws itself: what the sample and `git-demo` are made of."""
