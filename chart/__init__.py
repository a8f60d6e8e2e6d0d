"""What is generated for the Helm chart, and how tests render it."""
