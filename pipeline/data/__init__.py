"""From a stranger's archive to checked pictures, clean captions and a stable split."""
