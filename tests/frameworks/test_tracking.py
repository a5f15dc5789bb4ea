"""Parameters that follow a model: loaded between two steps, whole or not at all, and reported once they are."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cogment_model_registry import ModelRegistry, errors, numpy
from tests.signing import KeyPair
from tests.waiting import wait_until

HAS = {name: importlib.util.find_spec(name) is not None for name in ("torch", "jax")}


@dataclass
class Framework:
    """A framework, and what its users have.

    Attributes:
        module: Its public module.
        parameters: Returns parameters whose elements are all a number.
        numbers: Returns the elements of parameters.
    """

    module: Any
    parameters: Callable[[float], Any]
    numbers: Callable[[Any], list[float]]


def of_numpy() -> Framework:
    def parameters(number: float) -> Any:
        return {"weight": np.full((2, 3), number, np.float32), "bias": np.full(2, number, np.float32)}

    return Framework(numpy, parameters, lambda tree: [*tree["weight"].ravel(), *tree["bias"]])


def of_torch() -> Framework:
    import torch  # noqa: PLC0415 # where it is installed

    from cogment_model_registry import torch as module  # noqa: PLC0415

    def parameters(number: float) -> Any:
        layer = torch.nn.Linear(3, 2)
        for tensor in layer.parameters():
            torch.nn.init.constant_(tensor, number)
        return layer

    return Framework(
        module, parameters, lambda layer: [x for each in layer.parameters() for x in each.ravel().tolist()]
    )


def of_jax() -> Framework:
    import jax.numpy as jnp  # noqa: PLC0415 # where it is installed

    from cogment_model_registry import jax as module  # noqa: PLC0415

    def parameters(number: float) -> Any:
        return {"weight": jnp.full((2, 3), number, jnp.float32), "bias": jnp.full(2, number, jnp.float32)}

    return Framework(module, parameters, lambda tree: [*map(float, tree["weight"].ravel()), *map(float, tree["bias"])])


@pytest.fixture(params=["numpy", "torch", "jax"])
def framework(request: pytest.FixtureRequest) -> Framework:
    if not HAS.get(request.param, True):
        pytest.skip(f"{request.param} is not installed: make test-frameworks")
    return {"numpy": of_numpy, "torch": of_torch, "jax": of_jax}[request.param]()


@pytest.fixture
def registry(shared_endpoint: str) -> Iterator[ModelRegistry]:
    with ModelRegistry(shared_endpoint, progress=False) as client:
        yield client


def test_a_version_is_loaded_when_the_program_requests_it(framework: Framework, registry: ModelRegistry) -> None:
    own = framework.parameters(0)
    with framework.module.track(registry, "policy", own) as tracked:
        assert tracked.update() is None
        assert tracked.value is own
        first = framework.module.publish(registry, "policy", framework.parameters(1))
        assert tracked.wait_for(timeout=30) == first == tracked.version
        assert framework.numbers(tracked.value) == [1.0] * 8
        assert tracked.update() is None
        second = framework.module.publish(registry, "policy", framework.parameters(2))
        wait_until(lambda: tracked.update() == second)
        assert tracked.version == second
        assert framework.numbers(tracked.value) == [2.0] * 8
        assert tracked.error is None
        assert "version 2" in repr(tracked)


def test_a_version_that_does_not_fit_changes_nothing(framework: Framework, registry: ModelRegistry) -> None:
    own = framework.parameters(0)
    numpy.publish(registry, "policy", {"weight": np.ones((2, 3), np.float32), "bias": np.ones(7, np.float32)})
    with framework.module.track(registry, "policy", own) as tracked:
        wait_until(lambda: tracked.update() or tracked.error)
        refusal = tracked.error
        assert isinstance(refusal, errors.InvalidError)
        assert '"bias" has the shape [7], not [2]' in str(refusal)
        assert repr(tracked).startswith("<Tracked: version None of <Latest: model")
        assert framework.numbers(own) == framework.numbers(tracked.value) == [0.0] * 8
        registry.publish("policy", b"neither")
        framework.module.publish(registry, "policy", framework.parameters(3))
        assert tracked.wait_for(newer_than=2, timeout=30).number == 3
        assert tracked.error is None
        assert framework.numbers(tracked.value) == [3.0] * 8


def test_waiting_for_a_version_that_does_not_fit_is_an_error(registry: ModelRegistry) -> None:
    own = {"a": np.zeros(2)}
    numpy.publish(registry, "policy", {"a": np.ones(3)})
    with numpy.track(registry, "policy", own) as tracked:
        with pytest.raises(
            errors.InvalidError, match=r'version 1 of model "policy": .* has the shape \[3\], not \[2\]'
        ):
            tracked.wait_for(timeout=30)
        with pytest.raises(errors.TimedOutError):
            tracked.wait_for(newer_than=1, timeout=0.01)
    with pytest.raises(errors.ClosedError):
        tracked.wait_for(newer_than=1)


def test_a_consumer_is_active_after_a_version_is_loaded(framework: Framework, registry: ModelRegistry) -> None:
    framework.module.publish(registry, "policy", framework.parameters(1))

    def reported() -> tuple[str, int] | None:
        found = registry.consumers("policy")
        return (found[0].state, found[0].version_number) if found else None

    with framework.module.track(registry, "policy", framework.parameters(0), consumer="actor") as tracked:
        wait_until(lambda: tracked._latest.snapshot)
        wait_until(lambda: reported() is not None)
        assert reported() == ("loading", 0)
        assert tracked.update() is not None
        wait_until(lambda: reported() == ("active", 1))
        numpy.publish(registry, "policy", {"weight": np.ones(1)})
        wait_until(lambda: tracked.update() or tracked.error)
        wait_until(lambda: reported() == ("failed", 1))
        assert tracked.consumer is not None


def test_parameters_are_signed_and_verified(framework: Framework, registry: ModelRegistry) -> None:
    signer, other = KeyPair(), KeyPair()
    own = framework.parameters(0)
    framework.module.publish(registry, "policy", framework.parameters(1), sign=signer.private)
    with framework.module.track(registry, "policy", own, verify=signer.public) as tracked:
        tracked.wait_for(timeout=30)
        framework.module.store(registry, "policy", framework.parameters(2), sign=other.private)
        wait_until(lambda: isinstance(tracked.error, errors.SignatureError))
        assert framework.numbers(tracked.value) == [1.0] * 8
    assert framework.module.load(registry, "policy", verify=other.public_pem).version.number == 2
    with pytest.raises(errors.SignatureError):
        framework.module.load(registry, "policy", verify=signer.public)


def test_options_choose_the_part_and_the_version(framework: Framework, registry: ModelRegistry) -> None:
    numpy.store(registry, "agent", {"actor": numbers(1), "critic": np.zeros(5)}, alias="production")
    numpy.publish(registry, "agent", {"actor": numbers(2)})
    own = framework.parameters(0)
    options = {"alias": "production", "prefix": "actor"}
    with framework.module.track(registry, "agent", own, **options) as tracked:
        assert tracked.wait_for(timeout=30).number == 1
        assert framework.numbers(tracked.value) == [1.0] * 8


def numbers(number: float) -> dict[str, Any]:
    return {"weight": np.full((2, 3), number, np.float32), "bias": np.full(2, number, np.float32)}


def test_halved_bytes_are_loaded_into_whole_ones(framework: Framework, registry: ModelRegistry) -> None:
    """The type is named as each framework does."""
    name: Any = "bfloat16"
    if framework.module.__name__.endswith("torch"):
        import torch  # noqa: PLC0415 # it is installed

        name = torch.bfloat16
    whole = framework.module.publish(registry, "policy", framework.parameters(1.5))
    half = framework.module.publish(registry, "policy", framework.parameters(-2.5), dtype=name)
    assert whole.data_size_bytes - half.data_size_bytes >= 16
    own = framework.parameters(0)
    with framework.module.track(registry, "policy", own) as tracked:
        tracked.wait_for(newer_than=1, timeout=30)
        assert framework.numbers(tracked.value) == [-2.5] * 8
        kinds = {str(each.dtype).rpartition(".")[2] for each in leaves(tracked.value)}
        assert kinds == {"float32"}


def leaves(value: Any) -> list[Any]:
    return [*value.values()] if isinstance(value, dict) else [*value.parameters()]


@pytest.mark.skipif(not HAS["torch"], reason="PyTorch is not installed: make test-frameworks")
def test_tensors_stay_the_same_objects_and_optimisers_continue(registry: ModelRegistry) -> None:
    import torch  # noqa: PLC0415 # where it is installed

    from cogment_model_registry import torch as module  # noqa: PLC0415

    source = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    own = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimiser = torch.optim.SGD(own.parameters(), 0.1)
    before = {name: (id(tensor), tensor.data_ptr()) for name, tensor in own.named_parameters()}
    source[1].num_batches_tracked += 7
    module.publish(registry, "policy", source, dtype=torch.bfloat16)
    with module.track(registry, "policy", own) as tracked:
        tracked.wait_for(timeout=30)
    assert tracked.value is own
    assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in own.named_parameters()} == before
    assert own[1].num_batches_tracked == 7  # a whole number, which is not converted
    assert torch.equal(own[0].weight, source[0].weight.bfloat16().float())
    own(torch.zeros(2, 3)).sum().backward()
    optimiser.step()
    with pytest.raises(errors.InvalidError, match="meta"):
        module.track(registry, "policy", torch.nn.Linear(3, 2, device="meta"))
