"""The server: one process that answers editors with the adapters of many projects over one base model.

In: HTTP requests as clients of OpenAI's, llama.cpp's and Ollama's APIs send them. Out: completions, each from the adapter of
the project it names and from nothing else. One thread owns MLX and works on one request at a time; a request of another
project costs putting other A and B matrices into the model, well under a millisecond. A base is in memory once, however
many projects are served.
"""

from mlx_gardener.serve.settings import ServeSettings

__all__ = ["ServeSettings"]
