"""What a section of kv_check gets, and how it tells what happened."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kv_actor import Actor


@dataclass
class Section:
    """One part of the check: it may fail, and take its time, without harm to the others."""

    name: str
    exporter_gpu: int
    importer_gpu: int
    small: bool
    """Sizes for trying the script itself, also without a GPU."""
    see_all: bool
    """Importers see all GPUs, not only their own."""
    seconds: float
    found: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        return self.began + self.seconds - time.monotonic()

    def pick(self, full: Any, small: Any) -> Any:
        return small if self.small else full

    def actor(self, name: str, make: type, gpu: int | None) -> Actor:
        """`gpu`: what it works on; None = it sees all, and chooses."""
        variables = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        if self.see_all and name == "importer":
            variables = {"KV_CHECK_DEVICE": str(gpu)}
        return Actor(name, make, variables, self.began + self.seconds)

    def say(self, text: str) -> None:
        print(f"[{self.name} {time.monotonic() - self.began:5.1f} s] {text}", flush=True)

    def tried(self, name: str, step: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        """Does a step and keeps what it found, or its error: then None is returned and the section goes on."""
        try:
            found = step(*arguments, **named)
        except Exception as error:
            self.errors.append(f"{name}: {error}")
            self.found[name] = {"error": f"{error}", "where": traceback.format_exc(limit=3)}
            self.say(f"{name} FAILED: {error}")
            return None
        self.found[name] = found
        self.say(f"{name}: {found}")
        return found
