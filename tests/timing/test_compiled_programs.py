"""What is counted in the text of a compiled program."""

import pytest

from experiments.timing import compiled_programs
from experiments.timing.compiled_programs import HloError

ADD = """
%add_one (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  %one = f32[] constant(1)
  %ones = f32[10]{0} broadcast(%one), dimensions={}
  ROOT %sum = f32[10]{0} add(%p, %ones)
}
"""
CONDITION = """
%condition (state.1: (s32[], f32[10])) -> pred[] {
  %state.1 = (s32[], f32[10]{0}) parameter(0)
  %index.1 = s32[] get-tuple-element(%state.1), index=0
  %bound = s32[] constant(6)
  ROOT %is_less = pred[] compare(%index.1, %bound), direction=LT
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"6"}}'


def fusion(name, operand):
    return f"  %{name} = f32[10]{{0}} fusion(%{operand}), kind=kLoop, calls=%add_one\n"


def loop_body(lines, result):
    """A body that carries an index and ten numbers, without what counts up."""
    return f"""
%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {{
  %state = (s32[], f32[10]{{0}}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %x = f32[10]{{0}} get-tuple-element(%state), index=1
{lines}  ROOT %next = (s32[], f32[10]{{0}}) tuple(%index, %{result})
}}
"""


def program(*computations, while_attributes=KNOWN, entry_lines=""):
    return (
        "HloModule jit_run_task, is_scheduled=true\n"
        + "".join(computations)
        + f"""
ENTRY %main (zero: s32[], a: f32[10]) -> f32[10] {{
  %zero = s32[] parameter(0)
  %a = f32[10]{{0}} parameter(1)
{entry_lines}  %first = (s32[], /*index=1*/f32[10]{{0}}) tuple(%zero, %a)
  %loop = (s32[], /*index=1*/f32[10]{{0}}) while(%first), condition=%condition, """
        + f"""body=%body{while_attributes}
  ROOT %out = f32[10]{{0}} get-tuple-element(%loop), index=1
}}
"""
    )


def count(text, updates=6):
    return compiled_programs.count(text, updates)


def test_a_fusion_is_one_kernel_and_names_for_memory_are_none():
    body = loop_body(fusion("y", "x") + "  %z = f32[10]{0} bitcast(%y)\n", "z")
    counts = count(program(ADD, body, CONDITION))
    assert (counts.kernels, counts.conditionals, counts.unknown_loops) == (1, 0, 0)
    assert counts.bytes_moved == 40 + 40


def test_a_planted_kernel_shows():
    lines = fusion("y", "x")
    planted = "  %twin = f32[10]{0} copy(%y)\n"
    before = count(program(ADD, loop_body(lines, "y"), CONDITION))
    after = count(program(ADD, loop_body(lines + planted, "twin"), CONDITION))
    assert after.kernels == before.kernels + 1
    assert after.bytes_moved == before.bytes_moved + 80


def test_loops_of_another_length_are_no_updates():
    """Such as one over five measured examples."""
    body = loop_body(fusion("y", "x"), "y")
    other = CONDITION.replace("constant(6)", "constant(5)").replace(
        "%condition", "%other"
    )
    measures = (
        "  %m = (s32[], f32[10]{0}) tuple(%zero, %a)\n"
        "  %w = (s32[], f32[10]{0}) while(%m), condition=%other, body=%body\n"
    )
    text = program(ADD, body, other, CONDITION, entry_lines=measures)
    assert count(text).kernels == 1
    whole = compiled_programs.summarize(compiled_programs.whole_work(text))
    assert whole.kernels == 6 + 5


def test_what_is_outside_the_updates_does_not_count():
    body = loop_body(fusion("y", "x"), "y")
    text = program(ADD, body, CONDITION, entry_lines=fusion("b", "a"))
    assert count(text).kernels == 1
    whole = compiled_programs.summarize(compiled_programs.whole_work(text))
    assert whole.kernels == 1 + 6


@pytest.mark.parametrize("attributes", [KNOWN, ""], ids=["known", "condition"])
def test_loops_run_as_often_as_they_say_or_as_their_conditions_do(attributes):
    """Twelve updates, two by each of six trips."""
    lines = fusion("y", "x") + fusion("z", "y")
    text = program(ADD, loop_body(lines, "z"), CONDITION, while_attributes=attributes)
    assert count(text, updates=12).kernels == 1


def test_a_loop_of_unknown_length_is_one_trip_and_is_told():
    endless = CONDITION.replace("constant(6)", "parameter(1)")
    inner = (
        "  %i = (s32[], f32[10]{0}) tuple(%index, %x)\n"
        "  %w = (s32[], f32[10]{0}) while(%i), condition=%endless, body=%inside\n"
        "  %y = f32[10]{0} get-tuple-element(%w), index=1\n"
    )
    inside = loop_body(fusion("y", "x"), "y").replace("%body", "%inside")
    endless = endless.replace("%condition", "%endless")
    text = program(ADD, inside, endless, loop_body(inner, "y"), CONDITION)
    counts = count(text)
    assert (counts.kernels, counts.unknown_loops) == (1, 1)


def test_loops_in_loops_multiply():
    """Each of six trips runs another loop of six, of one kernel."""
    inner = (
        "  %i = (s32[], f32[10]{0}) tuple(%index, %x)\n"
        "  %w = (s32[], f32[10]{0}) while(%i), condition=%condition, body=%inside"
        f"{KNOWN}\n"
        "  %y = f32[10]{0} get-tuple-element(%w), index=1\n"
    )
    inside = loop_body(fusion("y", "x"), "y").replace("%body", "%inside")
    text = program(ADD, inside, loop_body(inner, "y"), CONDITION)
    assert count(text, updates=36).kernels == 1
    assert count(text, updates=6).kernels == 6


BRANCHES = """
%none (q: f32[10]) -> f32[10] {
  ROOT %q = f32[10]{0} parameter(0)
}

%some (r: f32[10]) -> f32[10] {
  %r = f32[10]{0} parameter(0)
  %r.1 = f32[10]{0} fusion(%r), kind=kLoop, calls=%add_one
  ROOT %r.2 = f32[10]{0} fusion(%r.1), kind=kLoop, calls=%add_one
}

%outer (s: f32[10]) -> f32[10] {
  %s = f32[10]{0} parameter(0)
  %flag = pred[] constant(true)
  ROOT %s.1 = f32[10]{0} conditional(%flag, %s, %s), true_computation=%some, """ + (
    """false_computation=%none
}
"""
)


@pytest.mark.parametrize(
    ("attributes", "conditionals", "most"),
    [
        ("branch_computations={%none, %some}", 1, 2),
        ("true_computation=%some, false_computation=%none", 1, 2),
        ("branch_computations={%none, %outer}", 2, 2),
    ],
)
def test_conditionals_count_apart_with_the_kernels_of_their_branches(
    attributes, conditionals, most
):
    lines = (
        fusion("y", "x")
        + "  %t = pred[] constant(true)\n"
        + f"  %z = f32[10]{{0}} conditional(%t, %y, %y), {attributes}\n"
    )
    counts = count(program(ADD, BRANCHES, loop_body(lines, "z"), CONDITION))
    assert counts.kernels == 1
    assert counts.conditionals == conditionals
    assert (counts.least_in_branches, counts.most_in_branches) == (0, most)
    assert (counts.bytes_moved, counts.most_bytes_in_branches) == (80, 160)


def test_calls_are_followed_and_libraries_are_one_kernel():
    called = fusion("y", "x").replace("%y", "%inner_y").replace("%x", "%p")
    computation = (
        "\n%called (p: f32[10]) -> f32[10] {\n  %p = f32[10]{0} parameter(0)\n"
        + called.replace("  %inner_y", "  ROOT %inner_y")
        + "}\n"
    )
    lines = (
        "  %y = f32[10]{0} call(%x), to_apply=%called\n"
        '  %z = f32[10]{0} custom-call(%y), custom_call_target="__cublas$gemm"\n'
        '  %b = f32[10]{0} custom-call(), custom_call_target="AllocateBuffer"\n'
    )
    counts = count(program(ADD, computation, loop_body(lines, "z"), CONDITION))
    assert (counts.kernels, counts.bytes_moved) == (2, 80 + 80)


SLICES = """
%take_row (m: f32[100,10], i: s32[]) -> f32[1,10] {
  %m = f32[100,10]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %n = s32[] constant(0)
  ROOT %row = f32[1,10]{1,0} dynamic-slice(%m, %i, %n), dynamic_slice_sizes={1,10}
}

%set_row (m: f32[100,10], r: f32[1,10], i: s32[]) -> f32[100,10] {
  %m = f32[100,10]{1,0} parameter(0)
  %r = f32[1,10]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %n = s32[] constant(0)
  ROOT %new = f32[100,10]{1,0} dynamic-update-slice(%m, %r, %i, %n)
}
"""


def test_only_what_is_taken_and_replaced_is_moved():
    """A row of 40 bytes, its index of 4, of a matrix of 4,000."""
    lines = (
        '  %m = f32[100,10]{1,0} custom-call(), custom_call_target="AllocateBuffer"\n'
        "  %row = f32[1,10]{1,0} fusion(%m, %index), kind=kLoop, calls=%take_row\n"
        "  %new = f32[100,10]{1,0} fusion(%m, %row, %index), kind=kLoop, "
        "calls=%set_row\n"
    )
    counts = count(program(SLICES, loop_body(lines, "x"), CONDITION))
    assert (counts.kernels, counts.bytes_moved) == (2, (40 + 4 + 40) + (40 + 4 + 40))


@pytest.mark.parametrize(
    ("layout", "wanted"),
    [
        ("{1,0}", 12 * 100 * 4),
        ("{1,0:T(8,128)}", 16 * 128 * 4),
        ("{0,1:T(8,128)}", 104 * 128 * 4),
        ("{1,0:T(8,128)S(1)}", 0),  # In the vector memory.
    ],
)
def test_tiles_of_a_tpu_are_full_and_its_vector_memory_is_none(layout, wanted):
    lines = (
        f"  %m = f32[12,100]{layout} custom-call(), "
        'custom_call_target="AllocateBuffer"\n'
        f"  %n = f32[12,100]{layout} copy(%m), "
        'backend_config={"estimated_cycles":"1825"}\n'
    )
    counts = count(program(loop_body(lines, "x"), CONDITION))
    assert (counts.bytes_moved, counts.cycles) == (2 * wanted, 1825)


@pytest.mark.parametrize(
    ("kind", "size"), [("pred", 1), ("bf16", 2), ("f8e4m3fn", 1), ("s4", 0.5)]
)
def test_dtypes_have_their_sizes(kind, size):
    lines = f"  %m = {kind}[100]{{0}} iota(), iota_dimension=0\n"
    text = program(loop_body(lines, "x"), CONDITION)
    assert count(text).bytes_moved == 100 * size


def test_devices_that_wait_for_one_another_are_named():
    lines = "  %y = f32[10]{0} all-reduce(%x), to_apply=%add_one\n"
    alone = program(ADD, loop_body(fusion("y", "x"), "y"), CONDITION)
    assert compiled_programs.collectives(alone) == []
    joined = program(ADD, loop_body(lines, "y"), CONDITION)
    assert compiled_programs.collectives(joined) == ["all-reduce"]
    started = joined.replace(" all-reduce(", " all-reduce-start(")
    assert compiled_programs.collectives(started) == ["all-reduce-start"]


def test_other_texts_are_refused():
    with pytest.raises(HloError, match="'module @jit.*is not the HLO text"):
        count("module @jit")
    text = program(ADD, loop_body(fusion("y", "x"), "y"), CONDITION)
    with pytest.raises(HloError, match="no loop of 100 updates"):
        count(text, updates=100)
