// FLOPs by phase, by the formulas of dynadapt/ops and dynadapt/engine/ledger.py: a multiply-add counts two.
#pragma once

#include "engine/adapter.h"
#include "engine/config.h"

namespace dynadapt {

struct Flops {
  int64_t forward = 0, backward = 0, update = 0, recompute = 0;

  void linear_forward(int64_t rows, const GroupShape& g, int64_t rank) {
    forward += 2 * rows * (g.K * g.outputs() + g.K * int64_t(g.parts.size()) * rank + rank * g.outputs());
  }
  void linear_backward(int64_t rows, const GroupShape& g, int64_t rank, bool need_dx) {
    const int64_t dx = need_dx ? g.K * g.outputs() + int64_t(g.parts.size()) * rank * g.K : 0;
    backward += 2 * rows * (rank * g.outputs() + dx);
  }
  void lora_gradient(int64_t rows, const GroupShape& g, int64_t rank) {
    backward += 2 * rows * (int64_t(g.parts.size()) * rank * g.K + rank * g.outputs());
  }
  /// Of one stream that sees `memory` entries of its memory (ModelConfig::seen_memory).
  void attention_forward(int64_t segment, int64_t memory, const ModelConfig& c) {
    forward += 4 * segment * (memory + segment) * c.q_width();
  }
  void attention_backward(int64_t segment, int64_t memory, const ModelConfig& c) {
    const int64_t window = 2 * segment * (memory + segment) * c.q_width();
    recompute += window;
    backward += 2 * window + 4 * segment * segment * c.q_width();
  }
  void cross_entropy(int64_t rows, const ModelConfig& c, bool gradient) {
    forward += 2 * rows * c.hidden * c.vocabulary;
    if (gradient) backward += 2 * rows * c.hidden * c.vocabulary;
  }
  void optimizer(int64_t sets, int64_t parameters, const OptimizerSettings& o) {
    const UpdateState state = state_of(o.kind, o.beta1, o.momentum);
    const int64_t moment = o.kind == UpdateKind::kSgd ? 2 : o.kind == UpdateKind::kLion ? 6 : 4;
    const int64_t direction = (state.second                  ? 9
                               : o.kind == UpdateKind::kLion ? 2
                                                             : 1) +
                              (state.first ? moment : 0) + (state.decays ? 2 : 0);
    update += sets * parameters * (2 + (o.clip > 0 ? 1 : 0) + direction + (o.decay > 0 ? 3 : 0) + 1);
  }
};

}  // namespace dynadapt
