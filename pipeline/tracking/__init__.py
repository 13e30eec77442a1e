"""MLflow: runs, registered versions, and what is kept of them. Decides no result."""
