"""What people look at: the live view, tables in the terminal, the model card, the HTML report, the notebook's display.

In: events, evidence, plans, records. Out: text, tables and pages; `html` and `model_card` have what a run leaves beside its
adapter. Nothing is imported here, since most commands need `text` alone, in a fifth of the time. Cost: under a second a page.
"""
