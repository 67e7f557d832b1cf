"""A training as a process with a life: `manager` starts it, `supervisor` keeps its worker alive, `worker` goes through `phases`.

In: projects by name. Out: registered adapters; progress in the registry and events in a journal meanwhile. Nothing is
imported here, since the processes are started by their modules' names. Cost: two processes a training.
"""
