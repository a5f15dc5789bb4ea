"""Take the pictures of docs/page.md: pages of a real server in a real browser, with a walker that is trained.

Times and ages differ between recordings, so nothing checks that the pictures are up to date:
`python -m tools.record_pages` takes them again. It needs Chromium, and the packages of `make test`.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from safetensors.numpy import save

from cogment_model_registry import ModelRegistry, RetentionRule

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "docs/pages"
COLOURS = 255
VERSIONS = 60
START_SECONDS = 60
SETTLE_MS = 2500
"""How long a page has for its first events and its curves."""

PICTURES = {
    "models": ("/", "light", 1160, 760),
    "model": ("/models/walker", "light", 1160, 1290),
    "model-phone": ("/models/walker", "dark", 390, 900),
    "version": ("/models/walker/versions/51", "dark", 1160, 960),
    "move": ("/models/walker/aliases/production/move?version=31", "light", 760, 330),
    "compare": ("/models/walker/compare?first=31&second=51", "light", 1160, 760),
}
"""By the name of the picture: the page, the colours, and the width and height of the window."""


@contextmanager
def running(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Return a context manager for a server; the addresses of gRPC and HTTP."""
    command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--host=127.0.0.1"]
    command += ["--port=0", "--http_port=0", f"--archive_dir={folder / 'archive'}", f"--audit_log={folder / 'audit'}"]
    command += ["--retention_seconds=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        ports: dict[str, str] = {}
        assert process.stdout is not None
        for line in process.stdout:
            for name, port in re.findall(r"\b(port|http_port)[\"=: ]+(\d+)", line):
                ports.setdefault(name, port)
            if len(ports) == 2:
                break
        yield f"grpc://127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['http_port']}"
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def train(registry: ModelRegistry) -> None:
    """Publish what the pictures show: models, a walker that learns, and actors of which some are slow."""
    rng = np.random.default_rng(7)
    weight = rng.normal(size=(256, 24)).astype("f4")
    for step in range(VERSIONS):
        weight = weight + rng.normal(scale=0.02, size=weight.shape).astype("f4")
        data = save(
            {"actor.0.weight": weight, "actor.0.bias": np.full(256, step / 100, "f4"), "actor.2.weight": weight[:6]}
        )
        gain = 1 - np.exp(-step / 20)
        registry.publish(
            "walker",
            data,
            tags={"run": f"ppo-{step // 30}", **({"parent": str(step)} if step else {})},
            metrics={
                "return": round(480 * gain + float(rng.normal()) * 14, 1),
                "loss": round(float(np.exp(-step / 15)) + abs(float(rng.normal())) * 0.02, 4),
                "entropy": round(1.42 - 0.012 * step + float(rng.normal()) * 0.01, 3),
            },
        )
    for number in (21, 31, 41, 51):
        registry.promote("walker", number)
    for model_id, count in (("arm-grasp", 5), ("cartpole-ppo", 12), ("vision.encoder", 1)):
        for _ in range(count):
            registry.store(model_id, b"weights", metrics={"return": round(float(rng.normal(300, 20)), 1)})
    registry.set_alias("walker", "production", 31)
    registry.set_alias("walker", "production", 41)
    registry.set_alias("walker", "canary", 51)
    registry.set_alias("cartpole-ppo", "production", 11)
    registry.update_model("walker", tags={"team": "locomotion"})
    registry.set_retention("walker", [RetentionRule("archived", keep_last=3, keep_best=2, metric="return")])
    act(registry)


def act(registry: ModelRegistry) -> None:
    """Report what the actors run."""
    behind = [0] * 22 + [1] * 9 + [2] * 4 + [4, 4, 6, 17, 17]
    for actor, lag in enumerate(behind):
        is_broken = actor == len(behind) - 1
        registry.report_consumer(
            "walker",
            f"actor-{actor:02d}",
            version=VERSIONS - lag,
            state="failed" if is_broken else "loading" if lag == 2 and actor % 2 else "active",
            error="actor.0.weight has the shape (256, 24), not (256, 32)" if is_broken else "",
            labels={"host": f"node-{actor % 5}"},
            ttl_seconds=600,
        )
    registry.report_consumer("cartpole-ppo", "evaluator", version=9, ttl_seconds=600)
    registry.report_consumer("arm-grasp", "robot-1", version=5, held_versions=[5], ttl_seconds=600)


def take(browser: Any, origin: str, name: str) -> None:
    """Take a picture, with as many colours as it needs and no more."""
    path, scheme, width, height = PICTURES[name]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(origin + path)
    page.wait_for_timeout(SETTLE_MS)
    target = FOLDER / f"{name}.png"
    page.screenshot(path=target)
    page.close()
    Image.open(target).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running(pathlib.Path(folder)) as (endpoint, origin):
        with ModelRegistry(endpoint) as registry:
            train(registry)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name in PICTURES:
                take(browser, origin, name)
            browser.close()


if __name__ == "__main__":
    main()
