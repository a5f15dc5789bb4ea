"""The table of errors and gRPC statuses."""

import grpc
import pytest

from cogment_model_registry import errors
from cogment_model_registry.wire.convert import error_type_of, status_of

STATUSES = {
    errors.InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfRangeError: grpc.StatusCode.OUT_OF_RANGE,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.ExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DataLossError: grpc.StatusCode.DATA_LOSS,
    errors.TimedOutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
}


@pytest.mark.parametrize(("error_type", "status"), STATUSES.items())
def test_errors_and_statuses_map_to_each_other(
    error_type: type[errors.ModelRegistryError], status: grpc.StatusCode
) -> None:
    assert status_of(error_type("message")) is status
    assert error_type_of(status) is error_type


def test_a_subclass_has_the_status_of_its_parent() -> None:
    assert status_of(errors.StoppingError()) is grpc.StatusCode.UNAVAILABLE


def test_an_error_outside_the_table_is_internal() -> None:
    assert status_of(errors.ModelRegistryError("message")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    "status", [s for s in grpc.StatusCode if s not in {*STATUSES.values(), grpc.StatusCode.CANCELLED}]
)
def test_a_status_outside_the_table_is_the_base_error(status: grpc.StatusCode) -> None:
    assert error_type_of(status) is errors.ModelRegistryError


def test_a_call_that_the_server_cancelled_is_unavailable() -> None:
    assert error_type_of(grpc.StatusCode.CANCELLED) is errors.UnavailableError
