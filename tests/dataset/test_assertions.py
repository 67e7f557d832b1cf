"""Assertions to complete: found by syntax in the styles of four languages, and answers cut like what stands there."""

from __future__ import annotations

import pytest

from mlx_gardener.dataset.assertions import AssertionTask, assertion_tasks, first_value, is_test
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.source.languages import language_of

PYTHON = """
class TestBasket(TestCase):
    def test_it(self):
        self.assertEqual(f(a, b), g(1, "x, y")["k"], "why")
        self.assertIn(a, names)
        self.assertAlmostEqual(a, 0.25, places=3)
        self.assertTrue(value)
        self.assertRaises(ValueError, f)
        self.assertEqual(
            a,
            other,
        )
        assert f(x) == {"a": 1}, "m"  # not this
        assert x is None
        assert "key" not in result.data  # why
        assert "key" in result.data
        assert a == b and c == d
        assert f(x) == [
            1, 2]
"""
GO = """package basket
func TestBasket(t *testing.T) {
	if got := f(x); got != want.Name {
		t.Errorf("no")
	}
	if x != other { return }
	assert.Equal(t, 3, f(x, "a"))
	require.Contains(t, list, "name")
	assert := assert.New(t)
	assert.Equal(Foo{1, 2}, actual)
	assert.NoError(t, err)
}
"""
RUST = """#[test]
fn it() {
    assert_eq!(foo(a, b), "x, y");
    assert_eq!(v.len(), items.len() + 1, "message {}", x);
    assert!(a.b() == Some(3), "m");
    pretty_assertions::assert_ne!(a, Foo::new(1));
    assert_eq!(a, x.iter().collect::<Vec<A, B>>());
    assert!(x.is_ok());
}
"""
SCRIPT = """
test("it", () => {
  expect(f(a)).toBeOneOf(allowed);
  expect(f(a)).not.toBe("x");
  expect(f(a)).toEqual({a: 1, b: [2]});
  expect(f(a)).to.be.equal(name);
  expect(f).toThrow();
  assert.strictEqual(a, other.thing);
  assertEquals(a, "b");
  assert(a.b === "see");
  foo.equal(a, bar);
})
"""
WANTED = {
    "tests/test_basket.py": (PYTHON, ['g(1, "x, y")["k"]', "0.25", '{"a": 1}']),
    "basket/basket_test.go": (GO, ["want.Name", 'f(x, "a")', '"name"', "actual"]),
    "src/basket.rs": (RUST, ['"x, y"', "items.len() + 1", "Some(3)", "Foo::new(1)"]),
    "web/__tests__/basket.js": (SCRIPT, ['"x"', "{a: 1, b: [2]}", "name", "other.thing", '"b"', '"see"']),
    "web/basket.spec.ts": (SCRIPT, ['"x"', "{a: 1, b: [2]}", "name", "other.thing", '"b"', '"see"']),
    "web/basket.test.tsx": (SCRIPT, ['"x"', "{a: 1, b: [2]}", "name", "other.thing", '"b"', '"see"']),
}


def tasks_of(path: str, text: str, count: int = 100) -> list[AssertionTask]:
    return assertion_tasks([Excerpt(path, language_of(path), text)], count, seed=0)


@pytest.mark.parametrize("path", WANTED)
def test_the_value_an_assertion_compares_with_is_asked_for(path: str) -> None:
    text, wanted = WANTED[path]
    found = sorted(tasks_of(path, text), key=lambda task: task.line)
    assert [task.target for task in found] == wanted
    for task in found:
        assert text.startswith(task.prefix) and not task.prefix.endswith(" ")
        assert text[len(task.prefix) :].lstrip(" ").startswith(task.target)
        line = text.split("\n")[task.line - 1]
        rest = line[len(task.prefix.split("\n")[-1]) :]
        assert first_value(rest, task.language, in_condition=task.in_condition) == task.target


def test_only_tests_are_asked_and_rust_has_them_beside_the_code() -> None:
    assert tasks_of("src/basket.py", PYTHON) == [] and tasks_of("basket.go", GO) == []
    yes = ("tests/a.py", "test_x.py", "x_test.go", "a.test.ts", "spec/a.js", "src/__tests__/b.js")
    no = ("latest/a.py", "contest.py", "src/testing/a.py", "attest.go", "conftest.py")
    assert all(is_test(path, language_of(path)) for path in yes)
    assert not any(is_test(path, language_of(path)) for path in no)
    assert is_test("src/lib.rs", "rust")


def test_fewer_tasks_are_the_first_of_more_and_none_stands_twice() -> None:
    more = tasks_of("tests/test_basket.py", PYTHON)
    assert tasks_of("tests/test_basket.py", PYTHON, 2) == more[:2] and len(set(more)) == len(more) == 3
    assert tasks_of("tests/test_basket.py", PYTHON, 0) == []


def test_a_value_of_an_earlier_assertion_in_the_file_is_not_asked_for_again() -> None:
    text = "import run\n\n\ndef test_it():\n" + "".join(
        f"    assert run.code({at}) == done.code\n    assert run.text({at}) == 'text {at}'\n"
        for at in range(9)
    )
    excerpts = [Excerpt(path, "python", text) for path in ("tests/a.py", "tests/b.py", "tests/a.py")]
    found = assertion_tasks(excerpts, 99, seed=0)
    assert sorted((task.path, task.target) for task in found) == [
        (path, value)
        for path in ("tests/a.py", "tests/b.py")
        for value in [*(f"'text {at}'" for at in range(9)), "done.code"]
    ]
    assert {task.line for task in found if task.target == "done.code"} == {5}


@pytest.mark.parametrize(
    ("line", "language", "value"),
    [
        (' f(1, 2), "why")', "python", "f(1, 2)"),
        (" 34 // 2", "python", "34 // 2"),
        (" 3  # three", "python", "3"),
        (' "a, b" )', "python", '"a, b"'),
        (r""" 'it\'s, so')""", "python", r"'it\'s, so'"),
        ('"x"); // why', "typescript", '"x"'),
        (" a[1]; b", "javascript", "a[1]"),
        (" (never closed", "go", "(never closed"),
        ("", "rust", ""),
    ],
)
def test_a_value_ends_where_its_argument_does(line: str, language: str, value: str) -> None:
    assert first_value(line, language) == value


def test_a_condition_ends_at_its_block() -> None:
    assert first_value(" want.Name {", "go", in_condition=True) == "want.Name"
    assert first_value(" Foo{1, 2})", "go") == "Foo{1, 2}"
