"""An adapter's life after training: how stale it is, and forgetting.

In: projects of the registry. Out: frozen records with JSON types. Built on trainings, evidence and adapters below it.
"""
