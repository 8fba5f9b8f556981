"""The plugin's tests: the contract that every executor holds, and what this one does."""

from jobq_greeting import Greeting, GreetingExecutor

from jobq.testing import ExecutorContract, run_executor


class TestGreeting(ExecutorContract):
    def executor(self) -> GreetingExecutor:
        return GreetingExecutor()

    def spec(self) -> Greeting:
        return Greeting(name="Ada")

    def endless_spec(self) -> Greeting:
        return Greeting(name="Ada", times=1_000_000, pause=0.05)

    def failing_spec(self) -> Greeting:
        return Greeting(name="nobody")


def test_it_greets_as_often_as_asked() -> None:
    ran = run_executor(GreetingExecutor(), Greeting(name="Ada", times=2))

    assert ran.log == ["hello Ada", "hello Ada"]
    assert ran.outcome.result == {"greeted": "Ada", "times": 2}
    assert [step.name for step in ran.steps] == ["greet"]
