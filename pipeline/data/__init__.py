"""Turn raw archives into checked pictures, clean captions and stable splits."""
