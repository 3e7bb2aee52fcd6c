"""The mutations: each a defect that Muon under ZeRO-3 can have, as an edit of one source file."""

from __future__ import annotations

from dataclasses import dataclass

PYTEST = "pytest"


@dataclass(frozen=True)
class Mutation:
    """An edit that must make one test fail.

    before: text that stands exactly once in `path`; after: what replaces it. runner: PYTEST, or the program of GoogleTest
    that is built again. test: what must fail, as the runner names it.
    """

    name: str
    path: str
    before: str
    after: str
    runner: str
    test: str


_PARITY = "tests/multirank/test_parity.py::test_five_steps_match_the_reference"
_ACCUMULATED = f"{_PARITY}[2 ranks: accumulation and clipping, small sub-groups, a bucket smaller than a matrix]"
_OFFLOADED = f"{_PARITY}[2 ranks: offload, accumulation and clipping, small sub-groups, weight decay]"
_GROWING_SCALE = (
    "tests/multirank/test_sixteen_bits.py::test_master_weights_match_the_reference_fed_with_the_reduced_gradients"
    "[2 ranks: fp16, summed in fp32, zero.Init, parameters offloaded, a growing scale]"
)

PLAN = (
    Mutation(
        "padding read",
        "zero3/plan/zero3_partition.cpp",
        "return {offset, std::min(chunk, numel - begin), begin};",
        "return {offset, chunk, begin};",
        "plan_tests",
        "ShardLayout.EveryElementOfAWholeMatrixIsMetOnceAtEveryWorldSize",
    ),
    Mutation(
        "a matrix owned twice",
        "zero3/plan/step_plan.cpp",
        "    for (MatrixBlock b : blocks) {\n",
        "    if (param == 0) blocks.push_back(blocks.front());\n    for (MatrixBlock b : blocks) {\n",
        "plan_tests",
        "StepPlan.EveryMatrixHasOneOwnerAndOneBucket",
    ),
    Mutation(
        "a matrix owned by no one",
        "zero3/plan/step_plan.cpp",
        "    for (MatrixBlock b : blocks) {\n",
        "    if (param == 2) blocks.pop_back();\n    for (MatrixBlock b : blocks) {\n",
        "plan_tests",
        "StepPlan.EveryMatrixHasOneOwnerAndOneBucket",
    ),
    Mutation(
        "a matrix goes to the rank that has the most to do",
        "zero3/plan/ownership.h",
        "std::min_element(loads_.begin()",
        "std::max_element(loads_.begin()",
        "plan_tests",
        "Ownership.StaysWithinFourThirdsOfTheAverageOrOfTheLargestMatrix",
    ),
    Mutation(
        "a bucket is gathered while no slot is free for it",
        "zero3/plan/collective_schedule.cpp",
        "std::max(1, slots < 4 ? slots - 1 : slots - 2)",
        "slots + 1",
        "plan_tests",
        "CollectiveSchedule.IsAcceptedAndFinishesForEveryNumberOfBucketsAndSlots",
    ),
    Mutation(
        "an order of collectives in which slots deadlock is accepted",
        "zero3/plan/collective_schedule.cpp",
        "invariant(bucket - slots < scattered,",
        "invariant(bucket - slots <= scattered,",
        "plan_tests",
        "CollectiveSchedule.OfOrderedCollectivesExactlyTheAcceptedOnesFinish",
    ),
    Mutation(
        "twice as much travels as a bucket has elements",
        "zero3/plan/bucket_route.cpp",
        "wire_offset += run.numel() * element_bytes;",
        "wire_offset += 2 * run.numel() * element_bytes;",
        "plan_tests",
        "StepPlan.TheBytesOfABucketAreThoseOfItsElementsAndFlagWords",
    ),
    Mutation(
        "blocks that travel together bear the name of the first",
        "zero3/plan/bucket_route.h",
        "return block + step * static_cast<int>((first_line + r) / lines);",
        "return block;",
        "plan_tests",
        "StepPlan.APieceOfManyBlocksNamesEachOfThem",
    ),
    Mutation(
        "gate and up of an expert are one matrix",
        "python/zeromuon/selection/layouts.py",
        "sizes = (outputs // parts,) * parts if parts > 1 and apart.split_fused else ()",
        "sizes = ()",
        PYTEST,
        f"{_PARITY}[2 ranks: experts]",
    ),
)

KERNELS = (
    Mutation(
        "the second moment of AdamW is not that of squares",
        "csrc/ops/simd/kernels.h",
        "mul(one_minus_beta2, mul(g, g))",
        "mul(one_minus_beta2, g)",
        "unit_tests",
        "Paths/Accuracy.OneStepIsWithinFourUlpOfDouble/avx2",
    ),
    Mutation(
        "a momentum that overflows as it is stored raises no flag",
        "csrc/ops/simd/kernels.h",
        "    bad = or_bad(bad, m, Range<State>::kFirstNonFinite);\n",
        "",
        "unit_tests",
        "Kernels/Path.AValueThatOverflowsOnlyWhenRoundedIsReported/avx2",
    ),
    Mutation(
        "bfloat16 is cut off, not rounded",
        "csrc/ops/simd/bfloat16_avx2.h",
        "_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd)",
        "_mm256_sub_epi32(_mm256_add_epi32(bits, odd), odd)",
        "unit_tests",
        "Kernels/Path.CastsAgreeWithTheReferenceOnEveryHalf/avx2",
    ),
    Mutation(
        "the mirrored half of a symmetric product is not transposed",
        "csrc/ops/newton_schulz/tile_ops.inc",
        "  block.transpose();\n  store_block(block, cols, rows,",
        "  store_block(block, cols, rows,",
        "unit_tests",
        "Products.SymmetricProductsAreExactlySymmetricAndRight",
    ),
    Mutation(
        "Newton-Schulz of a tall matrix stays untransposed",
        "csrc/ops/newton_schulz/host_products.cpp",
        "if (!out.tall()) return;",
        "if (out.rows > 0) return;",
        "unit_tests",
        "NewtonSchulz.TheTransposeOfAnInputGivesTheTransposeOfTheResult",
    ),
    Mutation(
        "a float16 polynomial has the addend of the one before",
        "csrc/ops/newton_schulz/float16_newton_schulz.cpp",
        "complete_r(r, triples[k + 1], p);",
        "complete_r(r, triples[k + 1], Stored{});",
        "unit_tests",
        "Float16NewtonSchulz.MatchesTheDefinitionWideTallAndWithRowsOfAnyLength",
    ),
)

PIPELINE = (
    Mutation(
        "AdamW's chunks go before what a bucket waits for",
        "offload/thread_lane.cpp",
        "urgent_.empty() ? filler_ : urgent_",
        "filler_.empty() ? urgent_ : filler_",
        "offload_tests",
        "ThreadLane.UrgentTasksPassFillersThatWait",
    ),
    Mutation(
        "blocks of the arena are not aligned",
        "offload/pinned_arena.cpp",
        "taken_bytes_ += aligned(bytes);",
        "taken_bytes_ += bytes;",
        "offload_tests",
        "PinnedArena.BlocksAreAlignedApartAndFillThePlanExactly",
    ),
    Mutation(
        "a value of the first matrix that is not finite raises no flag",
        "zero3/step/bucket_stages.cpp",
        "return 1 + static_cast<FlagWord>(block);",
        "return static_cast<FlagWord>(block);",
        "unit_tests",
        "StepExecutor.ANonFiniteMomentumOnOneRankStopsAllBeforeTheApply",
    ),
    Mutation(
        "AdamW's second moment may become infinite",
        "csrc/ops/simd/kernels.h",
        "inline Bad or_bad_states(Bad bad, F, F v, float*) { return or_non_finite(bad, v); }",
        "inline Bad or_bad_states(Bad bad, F, F, float*) { return bad; }",
        "unit_tests",
        "OfElementwise/Finite.EveryWrittenArrayIsLookedAt/generic",
    ),
    Mutation(
        "weights decay that the mask spares",
        "zero3/step/bucket_stages.cpp",
        "ops::AdamWElement element(call.hyper, chunk.decay);",
        "ops::AdamWElement element(call.hyper, chunk.decay || true);",
        "unit_tests",
        "StepExecutor.AdamWLeavesPaddingAloneAndDecaysByMask",
    ),
    Mutation(
        "a stage does not stand behind what the one before it handed over",
        "zero3/step/conductor.cpp",
        "std::move(body), handed.mark, hands_over);",
        "std::move(body), nullptr, hands_over);",
        "pipeline_tests",
        "PipelineWithStreams.GivesTheBitsOfThePlainPath",
    ),
)

FORMATS = (
    Mutation(
        "CRCs of pieces are combined as if they had the same length",
        "csrc/formats/crc32.cpp",
        "return multiply(x_to_the_bits_of(second_bytes), first) ^ second;",
        "return multiply(x_to_the_bits_of(second_bytes & 63), first) ^ second;",
        "formats_tests",
        "Crc32.PiecesCombineToTheWhole",
    ),
    Mutation(
        "records of a zip may overlap",
        "csrc/formats/zip_reader.cpp",
        "      check(locals_[i] >= end,",
        "      check(locals_[i] + UINT32_MAX >= end,",
        "formats_tests",
        "Zip.OverlappingRecordsAreRefused",
    ),
    Mutation(
        "a safetensors header need not add up",
        "csrc/formats/safetensors.cpp",
        "check(fits && bytes == end_ - begin_,",
        "check(fits,",
        "formats_tests",
        "Safetensors.HeadersThatDoNotAddUpAreRefused",
    ),
    Mutation(
        "a view may end beyond its storage",
        "csrc/formats/torch_file.cpp",
        "return last == INT64_MAX ? -1 : last + 1;",
        "return last == INT64_MAX ? -1 : last;",
        "formats_tests",
        "TorchFiles.ViewsBeyondTheirStorageAreRefused",
    ),
    Mutation(
        "the name of a global may hold control characters",
        "csrc/formats/pickle_reader.cpp",
        'check(static_cast<uint8_t>(c) >= 0x20, "the name',
        'check(static_cast<uint8_t>(c) >= 0x01, "the name',
        "formats_tests",
        "Pickle.StackMarksAndMemoAreChecked",
    ),
)

CONVERTER = (
    Mutation(
        "a momentum keeps the units of the other optimizer",
        "zero3/convert/elements.cpp",
        "encode(static_cast<float>(decode(in[i]) * factor), out[i]);",
        "encode(static_cast<float>(decode(in[i])), out[i]);",
        "convert_tests",
        "Verbs.AdamWBecomesMuonInTheUnitsOfItsMomentum",
    ),
    Mutation(
        "verify trusts the CRC that it is to check",
        "zero3/convert/crcs.cpp",
        "if (crc == records[i].crc) continue;",
        "if (crc == records[i].crc || crc != 0) continue;",
        "convert_tests",
        "Verbs.VerifyFindsAFlippedByte",
    ),
    Mutation(
        "a checkpoint is written over itself with --force",
        "zero3/convert/outputs.cpp",
        "  refuse_sources(source, outputs);\n",
        "  if (!run.force) refuse_sources(source, outputs);\n",
        "convert_tests",
        "Outputs.ACheckpointIsNeverWrittenOverItselfAlsoWithForce",
    ),
    Mutation(
        "ranks may be of different steps",
        "zero3/convert/read_zero3.cpp",
        "if (here == first) continue;",
        "if (here == first || rank > 0) continue;",
        "convert_tests",
        "Hostile.FilesOfSeveralCheckpointsAreNotMixed",
    ),
)

HOOKS = (
    Mutation(
        "Newton-Schulz once per micro-batch",
        "python/zeromuon/optimizer/optimizer.py",
        "                self._binding.executor.step(tasks)\n",
        "                micro_batches = self._binding.zero3.gradient_accumulation_steps\n"
        "                unused = [{k: torch.as_tensor(v).clone() for k, v in state.items()} for state in states]\n"
        "                for again in range(micro_batches):\n"
        "                    tasks = []\n"
        "                    for r, state, other, count in zip(requests, states, unused, counts):\n"
        "                        told, muon = dict(values[r.sub_group.group]), r.sub_group.role == 'muon'\n"
        "                        if muon:\n"
        "                            told['lr'] /= micro_batches\n"
        "                        elif again:\n"
        "                            told['lr'] = told['weight_decay'] = 0.0\n"
        "                        used = other if again and not muon else state\n"
        "                        tasks.append(make_task(r, used, self._options, told, count, self._decoupled_decay))\n"
        "                    self._binding.executor.step(tasks)\n",
        PYTEST,
        _ACCUMULATED,
    ),
    Mutation(
        "clipping after the orthogonalisation",
        "python/zeromuon/optimizer/optimizer.py",
        "        tasks = [\n"
        "            make_task(r, state, self._options, values[r.sub_group.group], count, self._decoupled_decay)\n",
        "        zero3 = self._binding.zero3\n"
        "        clip = min(1.0, zero3.clip_grad / (float(zero3._global_grad_norm) + 1e-6)) if zero3.clip_grad > 0 else 1.0\n"
        "        for i, r in enumerate(requests):\n"
        "            if r.sub_group.role == 'muon':\n"
        "                requests[i] = dataclasses.replace(r, gradient_scale=r.gradient_scale / clip)\n"
        "        values = {\n"
        "            r.sub_group.group: {**values[r.sub_group.group], 'lr': values[r.sub_group.group]['lr'] * (clip if r.sub_group.role == 'muon' else 1.0)}\n"
        "            for r in requests\n"
        "        }\n"
        "        tasks = [\n"
        "            make_task(r, state, self._options, values[r.sub_group.group], count, self._decoupled_decay)\n",
        PYTEST,
        _ACCUMULATED,
    ),
    Mutation(
        "momentum not advanced on one rank",
        "python/zeromuon/optimizer/tasks.py",
        "        return _core.MuonTask(*tensors, request.low_precision, **hyper)\n",
        "        if __import__('torch').distributed.get_rank() == 1:\n"
        "            tensors = (*tensors[:3], state['exp_avg'].clone())\n"
        "        return _core.MuonTask(*tensors, request.low_precision, **hyper)\n",
        PYTEST,
        _ACCUMULATED,
    ),
    Mutation(
        "a loss scale that grows before the gradients are unscaled",
        "python/zeromuon/deepspeed/watch.py",
        "    if zero3.dtype != torch.float16:\n        return\n",
        "    return\n",
        PYTEST,
        _GROWING_SCALE,
    ),
    Mutation(
        "the fused step forgets to unscale and clip",
        "python/zeromuon/deepspeed/fused_step.py",
        "Request(self._sub_groups[sub_group_id], self._scale, low_precision)",
        "Request(self._sub_groups[sub_group_id], 1.0, low_precision)",
        PYTEST,
        _OFFLOADED,
    ),
    Mutation(
        "the fused step keeps the gradients of a step that failed",
        "python/zeromuon/deepspeed/fused_step.py",
        "                self._sub_groups[index].flat.grad = None\n",
        "                pass\n",
        PYTEST,
        "tests/python/deepspeed/test_fused_step_recorder.py"
        "::test_an_error_of_the_step_leaves_nothing_recorded_and_no_gradient",
    ),
    Mutation(
        "other shards than those that were bound are stepped",
        "python/zeromuon/deepspeed/fused_step.py",
        "if sub_group is None or flat is not sub_group.flat:",
        "if sub_group is None:",
        PYTEST,
        "tests/python/deepspeed/test_fused_step_recorder.py::test_other_shards_than_those_bound_are_refused",
    ),
    Mutation(
        "a function of DeepSpeed is replaced twice",
        "python/zeromuon/deepspeed/hooks.py",
        "        elif _function(there.replacement) is _function(replacement):\n            return\n",
        "        elif _function(there.replacement) is _function(replacement):\n            continue\n",
        PYTEST,
        "tests/python/deepspeed/test_hooks.py::test_a_second_call_does_nothing[object]",
    ),
)

MUTATIONS = (*PLAN, *HOOKS, *KERNELS, *PIPELINE, *FORMATS, *CONVERTER)
