"""Where heavy work on single pictures runs: in threads of this machine, or in Ray's workers."""
