"""What the server counts, as Prometheus reads it (text format 0.0.4). Names follow vLLM's, with the prefix `limner:`.

Labels are the model's name and words of our own: no text, key or address of a client ever becomes one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from threading import Lock

PREFIX = "limner:"
SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
COUNTERS = {
    "prompt_tokens": "Tokens of prompts that were admitted.",
    "generation_tokens": "Tokens drawn, those of pictures among them.",
    "request_success": "Answers given, by why they ended.",
    "request_failure": "Requests that got no whole answer, by why.",
    "admission_rejections": "Requests sent away, by reason.",
    "pictures": "Pictures in answers, by origin.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": "From arrival to the first event that a client sees.",
    "time_to_first_picture_seconds": "From arrival to the first picture, painted.",
    "inter_token_latency_seconds": "Between pieces of text, pictures apart.",
    "request_time_per_output_token_seconds": "Of an answer, without its first.",
    "e2e_request_latency_seconds": "From arrival to the end.",
    "request_queue_time_seconds": "From arrival to admission.",
    "request_prefill_time_seconds": "Of the prompt.",
    "request_decode_time_seconds": "From the prompt's end to the answer's.",
    "picture_seconds": "From a picture's beginning until it is painted.",
    "picture_decode_seconds": "Of painting alone.",
}
Gauges = Callable[[], dict[str, float]]


class Metrics:
    """Counters and histograms that any thread adds to."""

    def __init__(self, model: str = ""):
        self.model = model
        self.gauges: Gauges = dict
        """Asked when somebody reads."""
        self._lock = Lock()
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._buckets = {name: [0] * (len(SECONDS) + 1) for name in HISTOGRAMS}
        self._sums = dict.fromkeys(HISTOGRAMS, 0.0)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        with self._lock:
            self._buckets[name][bisect_left(SECONDS, seconds)] += 1
            self._sums[name] += seconds

    def total(self, name: str, **labels: str) -> float:
        """Of a counter over all values of the labels that are not named."""
        wanted = set(labels.items())
        with self._lock:
            return sum(value for (known, has), value in self._counts.items() if known == name and wanted <= {*has})

    def text(self) -> str:
        lines: list[str] = []
        for name, value in self.gauges().items():
            lines += [f"# TYPE {PREFIX}{name} gauge", f"{PREFIX}{name}{self._labels()} {value:g}"]
        with self._lock:
            counts, sums = dict(self._counts), dict(self._sums)
            buckets = {name: list(found) for name, found in self._buckets.items()}
        for name, help in COUNTERS.items():
            lines += [f"# HELP {PREFIX}{name}_total {help}", f"# TYPE {PREFIX}{name}_total counter"]
            found = {labels: value for (known, labels), value in counts.items() if known == name}
            lines += [
                f"{PREFIX}{name}_total{self._labels(labels)} {value:g}" for labels, value in found.items() or [((), 0)]
            ]
        for name, help in HISTOGRAMS.items():
            lines += [f"# HELP {PREFIX}{name} {help}", f"# TYPE {PREFIX}{name} histogram"]
            total = 0
            for bound, number in zip((*SECONDS, "+Inf"), buckets[name], strict=True):
                total += number
                lines.append(f"{PREFIX}{name}_bucket{self._labels((('le', str(bound)),))} {total}")
            lines += [f"{PREFIX}{name}_sum{self._labels()} {sums[name]:g}"]
            lines += [f"{PREFIX}{name}_count{self._labels()} {total}"]
        return "\n".join(lines) + "\n"

    def _labels(self, more: tuple[tuple[str, str], ...] = ()) -> str:
        pairs = (("model_name", self.model), *more)
        return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
