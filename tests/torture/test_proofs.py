"""The short forms of the proofs; `make torture` runs the long ones."""

import os
from pathlib import Path
from random import Random

import pytest

from tests.torture.proof import Figures, Proof
from tests.torture.proofs import PROOFS


@pytest.mark.timeout(300)  # some start many processes, which takes long on a busy machine
@pytest.mark.parametrize("proof", [pytest.param(proof, id=proof.name) for proof in PROOFS])
def test_promise_holds(proof: Proof, tmp_path: Path) -> None:
    if reason := proof.missing():
        if proof.is_needed and os.environ.get("CI"):
            pytest.fail(f"{proof.name} must run in CI: {reason}")
        pytest.skip(f"{proof.name} cannot run on this machine: {reason}")
    figures = Figures()
    proof.attempt(tmp_path, proof.short, Random(proof.name), figures)
    assert figures.sums, "the proof counted nothing"
