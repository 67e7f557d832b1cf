"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from mlx_gardener.serve.metrics import Metrics


def test_every_name_and_value_is_told_and_nothing_else() -> None:
    metrics = Metrics()
    metrics.requests.labels("/infill", 200).inc()
    metrics.prompt_tokens.inc(1_234_567)
    metrics.first_token_seconds.observe(0.3)
    text = metrics.text({"busy": ("Whether it is.", 1.0)}, {"swaps_total": ("Times.", 2.0)}).decode()
    told = {
        (sample.name.removeprefix("mlx_gardener_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert told["requests_total", "/infill", "200"] == 1
    assert told["prompt_tokens_total",] == 1_234_567 and told["cancelled_total",] == 0
    assert (told["busy",], told["swaps_total",]) == (1, 2)
    buckets = {key[1]: value for key, value in told.items() if key[0] == "first_token_seconds_bucket"}
    assert (buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (0, 1, 1)
    assert not [key for key in told if "created" in key[0]]
    assert metrics.text({}, {}) != Metrics().text({}, {}), "each server has its own"
