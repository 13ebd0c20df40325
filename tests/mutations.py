"""Planted bugs, and the tests that find them: what the tests are worth.

    python tests/mutations.py                       # each in turn: N planted, N caught
    python tests/mutations.py "SUB, turned round"   # those whose name has this, with pytest's words
    python tests/mutations.py --list

Each row of MUTATIONS is a bug: a file, a piece of its text that occurs once, what stands there
instead, and the tests that must fail then. It is planted in a copy of this checkout, so the
processes that tests start have it as well. Every named test must fail, as a test: a crash, a test
that is not there or one that is skipped is no catch. And all named tests must pass in a copy
without any bug.

A row whose text is not found any more is to be moved to where that code went.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 240  # seconds that the tests of one bug may take
NOT_COPIED = (".git", ".*", "__pycache__", "*.egg-info", "build", "dist", "venv")


@dataclass(frozen=True)
class Mutation:
    """One bug. `tests` are pytest's node ids below tests/; of a parametrized test without its
    brackets, one case that fails will do."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, file, old, new, tests)


MUTATIONS: tuple[Mutation, ...] = (
    # the device: a row of the renderer, a step of the tile path, the graph, the threads, the cache
    _("SUB, turned round", "devices/renderer.py",
      'nsz contract"\n    body.names[u] = body.value(f"{opcode} {body.typed(a)}, {body[b]}")',
      'nsz contract"\n    body.names[u] = body.value(f"{opcode} {body.typed(b)}, {body[a]}")',
      "test_device.py::test_functions_agree_with_numpy[loops-float32]"),
    _("CMPLT takes equal for less", "devices/renderer.py",
      '"icmp ult", "icmp slt", "fcmp olt"', '"icmp ule", "icmp sle", "fcmp ole"',
      "test_device.py::test_arithmetic_of_every_type_equals_numpy[loops-int32]"),
    _("SHR for SHL", "devices/renderer.py",
      'Ops.SHL:   (None,       "shl",      "shl", ', 'Ops.SHL:   (None,       "lshr",     "ashr",',
      "test_device.py::test_arithmetic_of_every_type_equals_numpy[loops-int32]"),
    _("a negative number is shifted like a positive one", "devices/renderer.py",
      '"lshr",     "ashr",     None', '"lshr",     "lshr",     None',
      "test_device.py::test_arithmetic_of_every_type_equals_numpy[loops-int32]"),
    _("MAX drops NaN", "devices/renderer.py", '3: "maximum"}', '3: "maxnum"}',
      "test_device.py::test_max_lets_nan_win_like_numpy"),
    _("a narrow negative number grows up positive", "devices/renderer.py",
      "{'sext' if kind(old) == 2 else 'zext'} {source}", "zext {source}",
      "test_device.py::test_a_narrow_number_keeps_its_sign"),
    _("a negative float becomes 0", "devices/renderer.py",
      '("fptoui" if new is dtypes.uint64 else "fptosi")', '"fptoui"',
      "test_device.py::test_float_to_integer_casts_equal_numpy_in_range_and_wrap_below_zero"),
    _("a loop misses its first turn", "devices/renderer.py",
      "phi {ty} [ 0, %{loop}.entry ]", "phi {ty} [ 1, %{loop}.entry ]",
      "test_device.py::test_arithmetic_of_every_type_equals_numpy[loops-int32]"),
    _("a load without its gate", "devices/renderer.py",
      "    if len(u.src) == 1:\n"
      "        body.names[u] = load(body, u.src[0], inside(body, u.src[0]))",
      "    if u.src:\n        body.names[u] = load(body, u.src[0])",
      "test_device.py::test_gated_loads_never_read_out_of_bounds[loops]"),
    _("a load that lost its gate reads where it points", "devices/renderer.py",
      "body.names[u] = load(body, u.src[0], inside(body, u.src[0]))",
      "body.names[u] = load(body, u.src[0])",
      "test_checked.py::test_a_load_that_lost_its_gate_reads_inside"),
    _("the tile path rounds a quotient twice", "devices/recover.py",
      "if (over := quotient(u, dtype)) is not None:", "if (over := None) is not None:",
      "test_programs.py::test_counting_right_answers_finds_the_largest[x/y]"),
    _("the loops path has tinygrad's exp2", "devices/renderer.py",
      "    Ops.EXP2: emit_exp2, Ops.SQRT", "    Ops.SQRT",
      "test_programs.py::test_a_value_has_the_same_bits_on_both_paths[float32]"),
    _("nobody is blamed for what was read elsewhere", "devices/instrument.py",
      'blame = self.let(f"select i1 {bad}, i32 {site + 1}, i32 0")',
      'blame = self.let(f"select i1 {bad}, i32 0, i32 0")',
      "test_checked.py::test_what_was_read_elsewhere_may_not_decide_anything"),
    _("the tile path's subtraction, turned round", "devices/values.py",
      'return e.let(f"{op} {args[0]}, {b.name}")',
      'return e.let(f"{op} {b}, {args[0].name}")',
      "test_device.py::test_arithmetic_of_every_type_equals_numpy[tile-int32]"),
    _("a vector writes one lane past the edge", "devices/values.py",
      "'true' if i < n else 'false'}\" for i in range(scope.width))",
      "'true' if i <= n else 'false'}\" for i in range(scope.width))",
      "test_contractions.py::test_nothing_is_read_or_written_past_an_edge"),
    _("padding is read as if it were there", "devices/values.py",
      "            mask = self.both(mask, self.tail(scope))\n            return self.from_memory(",
      "            mask = self.tail(scope)\n            return self.from_memory(",
      "test_contractions.py::test_convolution",
      "test_contractions.py::test_nothing_is_read_or_written_past_an_edge"),
    _("a lane's mask is its neighbour's", "devices/values.py",
      "np.where(place >= 0, 1 << np.maximum(place, 0), 0)",
      "np.where(place >= 0, 1 << np.maximum(place - 1, 0), 0)",
      "test_contractions.py::test_convolution"),
    _("relu keeps what it should drop", "devices/values.py",
      'fcmp olt {b}, {a.name}', 'fcmp ogt {b}, {a.name}',
      "test_contractions.py::test_prologue_and_epilogue_are_fused"),
    _("one digit of exp2", "devices/exp2.py", "0.2402264476", "0.2402764476",
      "test_contractions.py::test_functions"),
    _("a quotient rounded the other way", "devices/values.py",
      "icmp slt {signs}, {zero}", "icmp sgt {signs}, {zero}",
      "test_device.py::test_arithmetic_of_every_type_equals_numpy[tile-int32]"),
    _("two chunks do the same work", "devices/emit.py",
      "{self.let(f'mul i64 %chunk, {tasks}')}", "{self.let(f'mul i64 %chunk, {tasks - 1}')}",
      "test_contractions.py::test_updates_in_place[1000000]"),
    _("a chunk leaves its last work undone", "devices/emit.py",
      "{self.let(f'mul i64 {top}, {tasks}')}", "{self.let(f'mul i64 {top}, {tasks - 1}')}",
      "test_contractions.py::test_large_matmul_packs_its_operands"),
    _("a sum is unrolled and still looped over", "devices/plan.py",
      "return chunked(replace(best, unroll=unrolled(best)))",
      "return chunked(replace(best, sums=best.sums[:-1], unroll=unrolled(best)))",
      "test_contractions.py::test_matmul"),
    _("a program that anybody could have written is run", "devices/cache.py",
      "return status.st_uid == os.geteuid() and not", "return True or not",
      "test_faults.py::test_a_file_that_others_could_have_planted_is_not_read"),
    _("half a cache file is left behind", "devices/cache.py",
      "                os.unlink(temporary)", "                pass",
      "test_faults.py::test_every_step_may_fail"),
    _("checked mode looks for division by another number", "devices/instrument.py",
      'bad = self.let(f"icmp eq {divisor}, {splat_or(x.type, n, 0)}")',
      'bad = self.let(f"icmp eq {divisor}, {splat_or(x.type, n, 3)}")',
      "test_checked.py::test_arithmetic_that_has_no_result"),
    _("checked mode takes no memory for never written", "devices/check.ll",
      "%never = icmp eq i64 %tag, 0", "%never = icmp eq i64 %tag, 77",
      "test_checked.py::test_memory_that_was_never_written"),
    _("every chunk is the first one", "devices/runtime.ll",
      "call void %kernel(ptr %args, i64 %chunk)", "call void %kernel(ptr %args, i64 0)",
      "test_device.py::test_every_chunk_runs_exactly_once"),
    _("a graph keeps its first call's input", "devices/graph.py",
      "self.words[word] = address", "self.words[word] = self.words[word]",
      "test_device.py::test_graph_takes_new_inputs_every_call"),
    _("an input used twice is rewritten once", "devices/graph.py",
      "            for word in words:", "            for word in words[:1]:",
      "test_device.py::test_graph_takes_new_inputs_every_call"),
    _("a graph's variable stays as captured", "devices/graph.py",
      "self.words[word] = var_vals[name]", "self.words[word] += 0",
      "test_device.py::test_graph_with_symbolic_sizes"),
    _("a spoilt cache file is believed", "devices/cache.py",
      ".digest() != data[:32]:", ".digest() == b\"\":",
      "test_cache.py::test_a_spoilt_file_is_noticed_and_removed"),
    _("TGX_FAST does not decide which program is cached", "devices/cache.py",
      "repr(renderer.settings()), code_version()]", "code_version()]",
      "test_cache.py::test_the_key_holds_everything_that_decides_the_code"),
    _("the cache throws away what was used last", "devices/cache.py",
      "in sorted(entries):", "in sorted(entries, reverse=True):",
      "test_cache.py::test_the_folder_stays_bounded_and_the_oldest_go_first"),
    _("a signal's handler may call the step that it interrupts", "devices/graph.py",
      "    if lock._is_owned():", "    if False:",
      "test_concurrency.py::"
      "test_a_handler_may_run_other_programs_but_not_the_step_it_interrupts"),
    _("a small stack is thought large enough", "devices/stacks.py",
      "_known.enough = size() >= NEEDED", "_known.enough = size() > 0",
      "test_concurrency.py::test_kernels_and_llvm_have_their_stack_where_threads_have_little"),
    _("a loop's loads are counted once", "devices/counts.py",
      "sums[place][i] += n * number", "sums[place][i] += number",
      "test_counted.py::test_sum"),
    _("a jitted view is kept without its offset", "tgx/adapter/jitcalls.py",
      "key += (at.op, at.arg, at.dtype, at.src[1:])", "key += (at.op, at.arg, at.dtype)",
      "test_jit_calls.py::test_an_offset_is_part_of_the_view"),
    _("matmul's gradient has the wrong sign", "kernels/gemm.py",
      "(None, matmul(g, y.T", "(None, matmul(-g, y.T",
      "test_kernels.py::test_matmul_from_tinygrad_with_gradients"),
    _("Adam's second moment takes the gradient for its square", "kernels/adam.py",
      "k.fma(x * x, k.splat(1 - BETA2", "k.fma(x, k.splat(1 - BETA2",
      "test_kernels.py::test_adam_from_tinygrad_is_tinygrads_adam"),
    # what the explorer says: where from, why, what it is called
    _("a line too low", "tgx/adapter/origins.py",
      "found = Place(code.co_filename, frame.f_lineno,",
      "found = Place(code.co_filename, frame.f_lineno + 1,",
      "test_provenance.py::test_lines_kept_apart_by_realize"),
    _("a merged node keeps only one of its lines", "tgx/adapter/provenance.py",
      "    return tuple(dict.fromkeys(a + b))[:MOST]", "    return a",
      "test_provenance.py::test_union_keeps_order_and_is_bounded"),
    _("what was folded in leaves no line", "tgx/adapter/provenance.py",
      "        if new not in fresh or new.op not in COMPUTING:\n            return",
      "        return",
      "test_provenance.py::test_folding_keeps_the_line_that_was_folded_in"),
    _("a false reason: overwriting, for readers that differ", "tgx/adapter/boundaries.py",
      '_realize_axis",\n        "consumers-differ",', '_realize_axis",\n        "self-access",',
      "test_boundaries.py::test_a_reason_and_its_absence[consumers-differ]"),
    _("a false reason: a reduce is called elementwise", "tgx/adapter/boundaries.py",
      '"reduce-broadcast" if _ends_in_reduce(node) else ("elementwise-broadcast")',
      '"elementwise-broadcast" if _ends_in_reduce(node) else ("reduce-broadcast")',
      "test_boundaries.py::test_a_reason_and_its_absence[reduce-broadcast]"),
    _("a false decision: the boundary of another value", "tgx/adapter/boundaries.py",
      "self.by_node[node] = self._add(decision)\n\n",
      "self.by_node[node] = max(0, self._add(decision) - 1)\n\n",
      "test_boundaries.py::test_every_boundary_inside_a_training_step_is_proved[small_mlp]"),
    _("a false reason not to compute again", "tgx/adapter/boundaries.py",
      '("len(accessed_buffers) > 3", "buffers")', '("len(accessed_buffers) > 3", "reduce")',
      "test_boundaries.py::test_what_is_computed_again_instead"),
    _("a broadcast's readers are not said", "tgx/adapter/boundaries.py",
      "decision.readers = (decision.via,)", "decision.readers = ()",
      "test_boundaries.py::test_a_broadcast_names_what_spreads_the_value"),
    _("a wrong name: factors of a gradient change places", "tgx/adapter/formulas.py",
      "return f\"{first}{'' if sides[0][1] and not turned else 'ᵀ'}·{t}\"",
      "return f\"{t}·{first}{'' if sides[0][1] and not turned else 'ᵀ'}\"",
      "test_names.py::test_what_a_name_says_is_the_gradient"),
    _("a wrong name: the transposition is forgotten", "tgx/adapter/formulas.py",
      "'' if sides[0][1] and not turned else 'ᵀ'}·{t}", "''}·{t}",
      "test_names.py::test_what_a_name_says_is_the_gradient"),
    # gradients
    _("a wrong rule: 1/a", "tgx/adapter/derivatives.py", "(-g * out * out,)", "(-g * out,)",
      "test_backward_rules.py::test_a_rule[RECIPROCAL]"),
    _("a wrong rule: a product's factors", "tgx/adapter/derivatives.py",
      "(g * x[1], g * x[0])", "(g * x[0], g * x[1])",
      "test_backward_rules.py::test_a_rule[MUL]"),
    _("a wrong textbook form: dW of a matmul", "tgx/adapter/textbook.py",
      "dw = a2.T @ d.reshape(-1, d.shape[-1])", "dw = -a2.T @ d.reshape(-1, d.shape[-1])",
      "test_textbook.py::test_a_textbook_form_is_the_slope[linear]",
      "test_backward.py::test_operations_have_their_textbook_form[mlp]"),
    _("a wrong textbook form: tanh", "tgx/adapter/textbook.py", "1 - z * z", "1 - z",
      "test_textbook.py::test_a_textbook_form_is_the_slope[tanh]"),
    _("finite differences extrapolate wrongly", "tgx/adapter/finite.py",
      "return (4 * near - wide) / 3, False\n    h /= 100",
      "return (4 * near - wide) / 2, False\n    h /= 100",
      "test_backward_rules.py::test_a_rule[RECIPROCAL]"),
    # the hardware's arithmetic
    _("registers are handed out in other steps", "tgx/hardware/occupancy.py",
      "REGISTER_STEP = 256", "REGISTER_STEP = 128",
      "test_hardware_occupancy.py::test_equals_nvidias_calculator_on_what_was_recorded"),
    _("Orin's SM holds more threads than it does", "tgx/hardware/occupancy.py",
      "87: _limits(1536,", "87: _limits(2048,",
      "test_hardware_occupancy.py::test_equals_nvidias_calculator_on_what_was_recorded"),
    _("a roof half as high", "tgx/hardware/roofline.py",
      "(2 * machine.lanes * rate * cycles_us)", "(machine.lanes * rate * cycles_us)",
      "test_hardware_roofline.py::test_the_bound_by_hand"),
    _("a copy moves its bytes once", "tgx/hardware/roofline.py",
      '{"dram": 2 * kernel.bytes', '{"dram": kernel.bytes',
      "test_hardware_roofline.py::test_a_copy_moves_its_bytes_twice"),
    _("the stack's attribute in a cubin", "tgx/hardware/cubin.py",
      "0x05, 0x11, 0x12, 0x2F", "0x05, 0x21, 0x22, 0x2F",
      "test_hardware_cubin.py::test_agrees_with_ptxas"),
    _("registers from the wrong byte of a cubin", "tgx/hardware/cubin.py",
      "facts.get((REGCOUNT, name), text.info >> 24)", "text.info >> 16 & 0xFF",
      "test_hardware_cubin.py::test_agrees_with_ptxas"),
    _("a cubin's section may lie outside of it", "tgx/hardware/cubin.py",
      "        if offset < 0 or offset + size > len(self.data):",
      "        if offset < 0:",
      "test_hardware_cubin.py::test_what_is_no_cubin_is_refused_in_words"),
    _("watts are read as milliwatts", "tgx/hardware/tegra.py",
      'for scale in (1000 if unit == "W" else 1,)', "for scale in (1,)",
      "test_hardware_tegra.py::test_a_rail_may_be_told_in_watts"),
    _("a profile's unit is not looked at", "tgx/hardware/profiles.py",
      "if unit != rule.unit:", "if unit is None:",
      "test_hardware_profiles.py::test_what_is_wrong_with_a_file_is_said",
      "test_hardware_profiles.py::test_all_problems_are_listed_at_once"),
    _("the slowest run is taken for the figure", "tgx/hardware/measure.py",
      "return min(self.seconds) / self.amount", "return max(self.seconds) / self.amount",
      "test_hardware_measure.py::test_the_command_writes_a_profile_that_can_be_shown"),
    _("a board's profile is filled with a CPU's numbers", "tgx/commands/devices.py",
      "        if choose(arch):\n            return\n", "        return\n",
      "test_hardware_measure.py::test_no_profile_is_filled_with_another_devices_numbers"),
    # files, pages, settings
    _("a bundle may unpack to anything", "tgx/codec.py",
      "validate=True), size + 1)", "validate=True))",
      "test_codec.py::test_a_bomb_is_not_unpacked"),
    _("a file that lost records is whole", "tgx/codec.py",
      'if record.get("records") != self.count:', "if False:",
      "test_codec.py::test_bad_files_are_refused_in_words"),
    _("a cut file hides that it was cut", "tgx/codec.py",
      "    if not gathered.ended:\n", "    if False:\n",
      "test_codec.py::test_every_cut_still_opens_and_says_so"),
    _("a trace may refer to what it does not have", "tgx/model.py",
      "if (value != -1 or (name, attribute) in NEEDED) and value not in index:", "if False:",
      "test_model.py::test_contradictions_are_refused"),
    _("characters nobody sees are passed on", "tgx/safe.py",
      "return _UNSEEN.sub(_shown, text)", "return text",
      "test_strangers.py::test_every_character_that_nobody_sees_is_shown",
      "test_strangers.py::test_bidi_controls_are_marked_and_distinct_names_stay_distinct"),
    _("a title is not escaped in the page", "tgx/views/html.py",
      '"{{title}}": escape(title)', '"{{title}}": title',
      "test_views.py::test_the_page_reaches_nowhere"),
    _("a label is not escaped in graphviz's language", "tgx/views/dot.py",
      "return escape(words.clean(text)[:LONGEST], quote=True)", "return words.clean(text)",
      "test_views.py::test_every_picture_draws"),
    _("a bundle may unpack to any size", "tgx/codec.py",
      "if size > budget.left():", "if False:",
      "test_strangers.py::test_a_small_file_does_not_unpack_to_a_large_trace"),
    _("a link in the output folder is followed", "tgx/codec.py",
      "if path.is_symlink():", "if False:",
      "test_strangers.py::test_a_link_in_the_folder_is_not_followed"),
    _("any text may stand in a kernel's code", "tgx/adapter/extract.py",
      'return "" if WORD.fullmatch(text) else f"has the text {text!r:.60}"', 'return ""',
      "test_strangers.py::test_a_kernels_code_can_only_be_arithmetic"),
    _("a page's policy allows any style", "tgx/safe.py",
      'f"style-src {_hash(style)}"', '"style-src \'unsafe-inline\'"',
      "test_strangers.py::test_the_policy_allows_one_script_and_one_style_by_their_hashes"),
    _("a kernel's name is not escaped in the profile's page", "tgx/hardware/picture.py",
      "f\"<td>{escape(cell)}</td>\"", "f\"<td>{cell}</td>\"",
      "test_hardware_report.py::test_the_page_is_whole_and_escaped"),
    _("a kernel's work is counted twice", "tgx/passes/costs.py",
      "flops_s = k.flops / us * 1e6 if", "flops_s = k.flops / us * 2e6 if",
      "test_passes.py::test_bounds_and_shares"),
    _("every two kernels are alike", "tgx/passes/match.py",
      "both, all_of = (x & y).total()", "both, all_of = (x | y).total()",
      "test_passes.py::test_a_kernel_that_computes_something_else_is_no_change_of_it"),
    _("a log's milliseconds are microseconds", "tgx/adapter/debuglog.py",
      '"us": 1.0, "ms": 1e3', '"us": 1.0, "ms": 1.0',
      "test_debuglog.py::test_a_cuda_log_without_a_gpu"),
    _("DEVICE wins over DEV", "tgx/settings.py",
      'return "DEV", dev', 'return "DEVICE", device or dev',
      "test_settings.py::test_the_device_handed_to_tinygrad"),
    _("a flag takes any word", "tgx/settings.py", 'if value not in ("0", "1"):', "if False:",
      "test_settings.py::test_a_flag_that_means_nothing"),
    # the guide
    _("micrograd forgets what it owed already", "examples/03_micrograd.py",
      "blame[parent] = blame.get(parent, 0.0) + blame[value] * slope",
      "blame[parent] = blame[value] * slope",
      "test_lessons.py::test_topological_order_and_accumulation"),
    _("INT8 rounds every input again for every output", "examples/guide_quantize.py",
      "return q.contiguous()", "return q",
      "test_jetson.py::test_activations_are_rounded_once_and_move_as_bytes"),
)



# **************** planting and running ****************


def planted(mutation: Mutation) -> str:
    """The text of the file with the bug in it."""
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise LookupError(
            f"{mutation.name}: its text occurs {text.count(mutation.old)} times in "
            f"{mutation.file}, expected once: move the row to where that code went"
        )
    return text.replace(mutation.old, mutation.new)


class Copy:
    """A copy of the checkout, in which one bug is planted at a time."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tgx"
        shutil.copytree(ROOT, self.root, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self.changes = 0

    def write(self, file: str, text: str) -> None:
        path = (self.root / file).resolve()
        path.write_text(text, encoding="utf-8")
        self.changes += 1  # a time of its own: no compiled file of before is taken for this one's
        os.utime(path, (1e9 + self.changes,) * 2)

    def run(self, tests: Sequence[str], patience: float = PATIENCE) -> tuple[int, set[str],
                                                                             set[str], str]:
        """pytest's exit code, the tests that failed and those that passed, and its output."""
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-rA", "-m",
                   "", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TGX_", "DEV", "PYTEST"))}
        try:
            done = subprocess.run(command, cwd=self.root, capture_output=True, text=True,
                                  env=kept | {"PYTHONPATH": str(self.root), "COLUMNS": "1000"},
                                  timeout=patience, check=False)
        except subprocess.TimeoutExpired:
            return -1, set(), set(), f"no end after {patience:g} s"
        lines = done.stdout.splitlines()

        def ended(*words: str) -> set[str]:
            return {line.split(" - ")[0].partition(" tests/")[2]
                    for line in lines if line.startswith(words)}

        return (done.returncode, ended("FAILED tests/", "ERROR tests/"), ended("PASSED tests/"),
                done.stdout + done.stderr)

    def survivors(self, mutation: Mutation) -> tuple[list[str], str]:
        """The named tests that do not find the bug, each with why; and pytest's output."""
        text = (ROOT / mutation.file).read_text(encoding="utf-8")
        self.write(mutation.file, planted(mutation))
        try:
            code, failed, _, output = self.run(mutation.tests)
        finally:
            self.write(mutation.file, text)
        if code not in (0, 1):
            return [f"{test}: pytest ended with {code}" for test in mutation.tests], output
        return [f"{test}: passes" for test in mutation.tests
                if not any(f == test or f.startswith(test + "[") for f in failed)], output


def named(mutations: Sequence[Mutation]) -> list[str]:
    return list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))


def sick(copy: Copy, tests: Sequence[str]) -> list[str]:
    """Those of the tests that fail or are skipped without any bug: they prove nothing."""
    code, failed, passed, output = copy.run(tests, 10 * PATIENCE)
    if code not in (0, 1):
        return [output]
    ran = {test for test in tests if any(p == test or p.startswith(test + "[") for p in passed)}
    return sorted({*tests} - ran | failed)


def main() -> None:
    parser = argparse.ArgumentParser(description="plant bugs, and see that the tests find them")
    parser.add_argument("name", nargs="?", help="only those whose name or file has this in it")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    mutations = [m for m in MUTATIONS if (args.name or "") in f"{m.name} {m.file}"]
    if args.list or not mutations:
        print(*(f"{m.file:30} {m.name}" for m in mutations or MUTATIONS), sep="\n")
        sys.exit(not mutations)
    started, missed = time.perf_counter(), 0
    with tempfile.TemporaryDirectory(prefix="tgx-mutations-") as folder:
        copy = Copy(Path(folder))
        for mutation in mutations:
            before = time.perf_counter()
            left, output = copy.survivors(mutation)
            missed += bool(left)
            if args.name:
                print(output)
            print(f"{'SURVIVES' if left else 'caught':8} {mutation.file:30} {mutation.name}, "
                  f"{time.perf_counter() - before:.0f} s", *left, sep="\n         ", flush=True)
        ill = sick(copy, named(mutations))
    print(*(f"fails or is skipped without any bug: {test}" for test in ill), sep="\n")
    print(f"{len(mutations)} planted, {len(mutations) - missed} caught by {len(named(mutations))} "
          f"tests, {time.perf_counter() - started:.0f} s")
    sys.exit(bool(missed or ill))


if __name__ == "__main__":
    main()
