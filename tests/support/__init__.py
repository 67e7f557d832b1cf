"""What several test files need: commands, trainings, engines, adapters, a reader of the docs."""
