"""`python tests/gpu/kv_check.py --out DIR [--sections link gather …]`: KV caches between two GPUs of one host.

- link: what the steps of mapping cost, and a link, between processes that see one GPU each, all, or the same one.
- gather: GB/s and contents for random blocks of many sizes, at several grids, against torch's peer copy.
- decode: how much decodes and large matrix products are slowed by gathers beside them, on either GPU.
- loss: a hundred exporters killed or stopped in mid-gather.
- nixl: the same lists of blocks by NIXL, where it is installed.
- handoff: an 8B shape prefilled on one GPU and decoded on the other, and moved in mid-decode: equal bit for bit.

Each section has processes of its own and may fail alone. Writes kv-gpu.json after each. With one GPU both sides share
it, and the result says so. `--small` tries the script itself with little memory.
Needs torch, triton, numpy, cuda-bindings, safetensors, protobuf; nixl-cu13 if there is one. No wheels need be carried.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Spawned processes get the same.
sys.path[:0] = [str(ROOT / part) for part in ("services/worker/src", "libs/common/src", "proto/gen", "tests/gpu")]

import kv_machine  # noqa: E402
from kv_section import Section  # noqa: E402

SECONDS = {"link": 85, "gather": 85, "decode": 85, "loss": 85, "nixl": 80, "handoff": 85}
"""After that long a section's processes are killed."""


def run(section: Section) -> None:
    """By name: a section that cannot even be imported fails alone too."""
    if section.name == "link":
        from kv_section_link import link as part
    elif section.name == "gather":
        from kv_section_link import gather as part
    elif section.name == "decode":
        from kv_section_decode import decode as part
    elif section.name == "loss":
        from kv_section_loss import loss as part
    elif section.name == "nixl":
        from kv_section_nixl import nixl as part
    else:
        from kv_section_handoff import handoff as part
    part(section)


def failed(section: Section, side: str) -> bool:
    return "error" in section.found.get(f"link_of_{side}", {"error": "was not tried"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "build/gpu")))
    parser.add_argument("--sections", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    parser.add_argument("--seconds", type=float, default=480, help="for all sections; those left over are skipped")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--see-all", action="store_true", help="importers see all GPUs; else only where they must")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    machine = kv_machine.describe()
    count = len(machine["gpus"])
    importer_gpu = 1 if count > 1 else 0
    found: dict[str, Any] = {"machine": machine, "one_gpu_only": count < 2, "small": arguments.small, "sections": {}}
    print(json.dumps(machine, indent=1), flush=True)
    if count < 2:
        print(f"ONE GPU ONLY ({count} found): both sides share it; rates are no link's", flush=True)
    began = time.monotonic()
    for name in arguments.sections:
        left = arguments.seconds - (time.monotonic() - began)
        if left < 15:
            found["sections"][name] = {"errors": ["skipped: out of time"]}
            continue
        section = Section(name, 0, importer_gpu, arguments.small, arguments.see_all, min(SECONDS[name], left))
        section.say("begins")
        try:
            run(section)
        except Exception as error:
            section.errors.append(f"{type(error).__name__}: {error}")
            section.found["traceback"] = traceback.format_exc(limit=6)
            section.say(f"FAILED: {error}")
        if name == "link" and failed(section, "importer") and not failed(section, "wide"):
            section.say("a process that sees one GPU cannot map another's memory: importers see all from here on")
            arguments.see_all = True
        took = round(time.monotonic() - section.began, 1)
        about = {"seconds": took, "importers_see_all": section.see_all, "errors": section.errors}
        found["sections"][name] = section.found | about
        (arguments.out / "kv-gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    found["seconds"] = round(time.monotonic() - began, 1)
    (arguments.out / "kv-gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"\n{'section':10} {'seconds':>8}  errors")
    for name, one in found["sections"].items():
        print(f"{name:10} {one.get('seconds', 0):8.1f}  {len(one['errors'])} {[text[:160] for text in one['errors']]}")
    wanted = ("reaches_330_gb_s", "within_10_percent", "memory_returned", "all_bits_equal")
    print({key: one[key] for one in found["sections"].values() for key in wanted if key in one}, flush=True)


if __name__ == "__main__":
    main()
