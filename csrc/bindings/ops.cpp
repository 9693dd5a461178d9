// The ops for Python: the arguments of each in the order of its reference, and the call of its C function.
#include "bindings/arguments.h"

namespace dynadapt::bindings {

size_t Arguments::place(std::string_view name) const {
  for (size_t i = 0; i < count_; i++)
    if (name == names_[i]) return i;
  throw std::logic_error(std::string(op_) + " has no argument " + std::string(name));
}

std::vector<const dynadapt_matrix*> Arguments::matrices(const char* name) const {
  std::vector<const dynadapt_matrix*> handles;
  for (py::handle part : values_[place(name)]) {
    if (!py::isinstance<PackedMatrix>(part))
      throw py::value_error(std::string(op_) + ": " + name + " has a " + Py_TYPE(part.ptr())->tp_name +
                            ", accepted is PackedMatrix");
    handles.push_back(part.cast<const PackedMatrix&>().get());
  }
  return handles;
}

namespace {

dynadapt_norm_params norm_params(Arguments& a, float eps) {
  return {sizeof(dynadapt_norm_params), a.kind({"rms", "layer"}), eps};
}

dynadapt_head_norm_params head_norm_params(Arguments& a, float eps) {
  return {sizeof(dynadapt_head_norm_params), a.whole("hq"), a.whole("hkv"), a.whole("d"), eps};
}

dynadapt_activation_params activation_params(Arguments& a) {
  return {sizeof(dynadapt_activation_params), a.kind({"swiglu", "gelu_tanh", "gelu", "geglu_tanh", "glu"})};
}

dynadapt_attention_params attention_params(Arguments& a) {
  return {
      sizeof(dynadapt_attention_params), a.whole("hq"), a.whole("hkv"), a.whole("d"), a.number("scale"), a.whole_or("window", 0),
      a.number_or("softcap", 0)};
}

/// The scale of the low-rank products: a number for all parts, (rank, scale) of each, or a SlotAdapters.
class Scales {
 public:
  Scales(Arguments& a, const char* op, size_t parts) {
    if (a.has("scale", "table")) {
      table_.emplace(op, "scale.table", a.member("scale", "table"));
      numbers_.emplace(op, "scale.scales", a.member("scale", "scales"));
      slot_table_ = whole<int64_t>(op, "scale.table", *table_, kDLInt, 2 + int64_t(parts));
      slot_scales_ = whole<float>(op, "scale.scales", *numbers_, kDLFloat, int64_t(parts));
      slot_count_ = table_->get()->shape[0];
      if (numbers_->get()->shape[0] != slot_count_)
        throw py::value_error(std::string(op) + ": scale.scales has " + std::to_string(numbers_->get()->shape[0]) +
                              " rows, accepted is one for each of the " + std::to_string(slot_count_) + " of scale.table");
      return;
    }
    if (!a.is_list("scale")) {
      scale_ = a.number("scale");
      return;
    }
    for (const auto& [rank, own] : a.pairs("scale")) {
      ranks_.push_back(rank);
      scales_.push_back(own);
    }
    if (!ranks_.empty() && ranks_.size() != parts)
      throw py::value_error(std::string(op) + ": scale has " + std::to_string(ranks_.size()) +
                            " pairs, accepted is one for each of " + std::to_string(parts) + " parts");
  }
  float scale() const { return scale_; }
  const int64_t* part_ranks() const { return ranks_.empty() ? nullptr : ranks_.data(); }
  const float* part_scales() const { return scales_.empty() ? nullptr : scales_.data(); }
  int64_t slot_count() const { return slot_count_; }
  const int64_t* slot_table() const { return slot_table_; }
  const float* slot_scales() const { return slot_scales_; }

 private:
  /// The data of a contiguous tensor [any, columns] on the CPU.
  template <class T>
  static const T* whole(const char* op, const char* name, const Tensor& given, DLDataTypeCode code, int64_t columns) {
    const DLTensor* t = given.get();
    const bool fits = t && t->ndim == 2 && t->shape[1] == columns && t->dtype.code == code && t->dtype.bits == 8 * sizeof(T) &&
                      t->device.device_type == kDLCPU &&
                      (!t->strides || (t->strides[1] == 1 && (t->strides[0] == columns || t->shape[0] == 1)));
    if (!fits)
      throw py::value_error(std::string(op) + ": " + name + " is no such tensor, accepted is contiguous " +
                            (code == kDLInt ? "int64" : "float32") + " [slots, " + std::to_string(columns) + "] on the CPU");
    return reinterpret_cast<const T*>(static_cast<const char*>(t->data) + t->byte_offset);
  }

  std::vector<int64_t> ranks_;
  std::vector<float> scales_;
  float scale_ = 0;
  std::optional<Tensor> table_, numbers_;
  int64_t slot_count_ = 0;
  const int64_t* slot_table_ = nullptr;
  const float* slot_scales_ = nullptr;
};

dynadapt_linear_params linear_params(const Scales& s) {
  return {sizeof(dynadapt_linear_params),
          s.scale(),
          s.part_ranks(),
          s.part_scales(),
          s.slot_count(),
          s.slot_table(),
          s.slot_scales()};
}

dynadapt_delta_rule_params delta_rule_params(Arguments& a) {
  return {sizeof(dynadapt_delta_rule_params),
          a.whole("hk"),
          a.whole("hv"),
          a.whole("dk"),
          a.whole("dv"),
          a.number("scale"),
          a.number("eps")};
}

dynadapt_gradient_params gradient_params(Arguments& a) { return {sizeof(dynadapt_gradient_params), a.flag("accumulate"), 0, 0}; }

dynadapt_cross_entropy_params cross_entropy_params(Arguments& a, float scale = 0) {
  return {sizeof(dynadapt_cross_entropy_params), a.number_or("softcap", 0), scale};
}

dynadapt_gradient_params cross_entropy_gradient_params(Arguments& a, float scale = 0) {
  return {sizeof(dynadapt_gradient_params), a.flag("accumulate"), a.number_or("softcap", 0), scale};
}

}  // namespace

void bind_ops(py::module_& module) {
  define(module, "linear_forward", {"x", "parts", "bias", "A", "Bt", "slots", "scale", "u", "y"}, [](Arguments& a) {
    const auto parts = a.matrices("parts");
    const Scales scales(a, "linear_forward", parts.size());
    const auto params = linear_params(scales);
    call(dynadapt_linear_forward, a["x"], parts.data(), int32_t(parts.size()), a["bias"], a["A"], a["Bt"], a["slots"], a["u"],
         a["y"], &params);
  });
  define(module, "linear_backward", {"dy", "parts", "A", "Bt", "slots", "scale", "dU", "dx"}, [](Arguments& a) {
    const auto parts = a.matrices("parts");
    const Scales scales(a, "linear_backward", parts.size());
    const auto params = linear_params(scales);
    call(dynadapt_linear_backward, a["dy"], parts.data(), int32_t(parts.size()), a["A"], a["Bt"], a["slots"], a["dU"], a["dx"],
         &params);
  });
  define(module, "lora_gradient", {"dy", "x", "u", "dU", "part_sizes", "scale", "slots", "dA", "dBt", "accumulate"},
         [](Arguments& a) {
           const auto sizes = a.sizes("part_sizes");
           const Scales scales(a, "lora_gradient", sizes.size());
           const dynadapt_lora_gradient_params params{
               sizeof params,       scales.scale(),       a.flag("accumulate"), int32_t(sizes.size()), sizes.data(),
               scales.part_ranks(), scales.part_scales(), scales.slot_count(),  scales.slot_table(),   scales.slot_scales()};
           call(dynadapt_lora_gradient, a["dy"], a["x"], a["u"], a["dU"], a["slots"], a["dA"], a["dBt"], &params);
         });
  define(module, "weight_gradient", {"dy", "x", "rows", "dW", "accumulate"}, [](Arguments& a) {
    const auto params = gradient_params(a);
    call(dynadapt_weight_gradient, a["dy"], a["x"], a["rows"], a["dW"], &params);
  });
  define(module, "row_scores", {"dy", "x", "out"}, [](Arguments& a) { call(dynadapt_row_scores, a["dy"], a["x"], a["out"]); });
  define(module, "bias_gradient", {"dy", "db"}, [](Arguments& a) { call(dynadapt_bias_gradient, a["dy"], a["db"]); });

  define<1>(module, "cross_entropy", {"h", "head", "targets", "weights", "nll", "lse", "dh", "softcap"}, [](Arguments& a) {
    const auto params = cross_entropy_params(a);
    if (params.softcap == 0)
      call(dynadapt_cross_entropy, a["h"], a.matrix("head"), a["targets"], a["weights"], a["nll"], a["lse"], a["dh"]);
    else
      call(dynadapt_softcapped_cross_entropy, a["h"], a.matrix("head"), a["targets"], a["weights"], a["nll"], a["lse"], a["dh"],
           &params);
  });
  define<1>(module, "distillation", {"h", "head", "targets", "ids", "logp", "weights", "nll", "lse", "kl", "dh", "softcap"},
            [](Arguments& a) {
              const auto params = cross_entropy_params(a);
              call(dynadapt_distillation, a["h"], a.matrix("head"), a["targets"], a["ids"], a["logp"], a["weights"], a["nll"],
                   a["lse"], a["kl"], a["dh"], &params);
            });
  define<1>(module, "cross_entropy_weight_gradient", {"h", "head", "targets", "weights", "lse", "dW", "accumulate", "softcap"},
            [](Arguments& a) {
              const auto params = cross_entropy_gradient_params(a);
              call(dynadapt_cross_entropy_weight_gradient, a["h"], a.matrix("head"), a["targets"], a["weights"], a["lse"],
                   a["dW"], &params);
            });
  define<1>(module, "adapted_cross_entropy",
            {"h", "head", "A", "Bt", "slots", "scale", "targets", "weights", "u", "nll", "lse", "dh", "dU", "softcap"},
            [](Arguments& a) {
              const auto params = cross_entropy_params(a, a.number("scale"));
              call(dynadapt_adapted_cross_entropy, a["h"], a.matrix("head"), a["A"], a["Bt"], a["slots"], a["targets"],
                   a["weights"], a["u"], a["nll"], a["lse"], a["dh"], a["dU"], &params);
            });
  define<1>(module, "adapted_cross_entropy_gradient",
            {"h", "head", "Bt", "slots", "scale", "targets", "weights", "lse", "u", "dU", "dA", "dBt", "accumulate", "softcap"},
            [](Arguments& a) {
              const auto params = cross_entropy_gradient_params(a, a.number("scale"));
              call(dynadapt_adapted_cross_entropy_gradient, a["h"], a.matrix("head"), a["Bt"], a["slots"], a["targets"],
                   a["weights"], a["lse"], a["u"], a["dU"], a["dA"], a["dBt"], &params);
            });
  define(module, "linear_mse", {"h", "weight", "bias", "target", "weights", "pred", "loss", "dh", "dweight", "dbias"},
         [](Arguments& a) {
           call(dynadapt_linear_mse, a["h"], a["weight"], a["bias"], a["target"], a["weights"], a["pred"], a["loss"], a["dh"],
                a["dweight"], a["dbias"]);
         });

  define(module, "norm_forward", {"x", "delta", "weight", "bias", "eps", "kind", "res", "y", "stat"}, [](Arguments& a) {
    const auto params = norm_params(a, a.number("eps"));
    call(dynadapt_norm_forward, a["x"], a["delta"], a["weight"], a["bias"], a["res"], a["y"], a["stat"], &params);
  });
  define<2>(module, "norm_backward", {"dy", "res", "weight", "stat", "kind", "dres", "dx", "dweight", "dbias", "bias", "y"},
            [](Arguments& a) {
              const auto params = norm_params(a, 0);
              call(dynadapt_norm_backward, a["dy"], a["res"], a["weight"], a["stat"], a["dres"], a["dx"], a["dweight"],
                   a["dbias"], a["bias"], a["y"], &params);
            });
  define(module, "head_norm_forward", {"qkv", "q_weight", "k_weight", "eps", "hq", "hkv", "d", "out", "rstd"}, [](Arguments& a) {
    const auto params = head_norm_params(a, a.number("eps"));
    call(dynadapt_head_norm_forward, a["qkv"], a["q_weight"], a["k_weight"], a["out"], a["rstd"], &params);
  });
  define(module, "head_norm_backward",
         {"dout", "qkv", "q_weight", "k_weight", "rstd", "hq", "hkv", "d", "dqkv", "dq_weight", "dk_weight"}, [](Arguments& a) {
           const auto params = head_norm_params(a, 0);
           call(dynadapt_head_norm_backward, a["dout"], a["qkv"], a["q_weight"], a["k_weight"], a["rstd"], a["dqkv"],
                a["dq_weight"], a["dk_weight"], &params);
         });
  define(module, "activation_forward", {"h", "kind", "y"}, [](Arguments& a) {
    const auto params = activation_params(a);
    call(dynadapt_activation_forward, a["h"], a["y"], &params);
  });
  define<1>(module, "activation_backward", {"dy", "h", "kind", "dh", "y"}, [](Arguments& a) {
    const auto params = activation_params(a);
    call(dynadapt_activation_backward, a["dy"], a["h"], a["dh"], a["y"], &params);
  });
  define(module, "embedding_forward", {"tokens", "table", "position_table", "positions", "out"}, [](Arguments& a) {
    call(dynadapt_embedding_forward, a["tokens"], a["table"], a["position_table"], a["positions"], a["out"]);
  });
  define(module, "embedding_backward", {"tokens", "dout", "dtable"},
         [](Arguments& a) { call(dynadapt_embedding_backward, a["tokens"], a["dout"], a["dtable"]); });
  define(module, "adapted_embedding_forward", {"tokens", "A", "Bt", "slots", "scale", "out"}, [](Arguments& a) {
    const dynadapt_adapted_embedding_params params{sizeof params, 0, a.number("scale")};
    call(dynadapt_adapted_embedding_forward, a["tokens"], a["A"], a["Bt"], a["slots"], a["out"], &params);
  });
  define(module, "adapted_embedding_backward", {"tokens", "dout", "A", "Bt", "slots", "scale", "dA", "dBt", "accumulate"},
         [](Arguments& a) {
           const dynadapt_adapted_embedding_params params{sizeof params, a.flag("accumulate"), a.number("scale")};
           call(dynadapt_adapted_embedding_backward, a["tokens"], a["dout"], a["A"], a["Bt"], a["slots"], a["dA"], a["dBt"],
                &params);
         });

  define<2>(
      module, "attention_forward",
      {"qkv", "mem_k", "mem_v", "mem_len", "slots", "cos", "sin", "hq", "hkv", "d", "scale", "out", "lse", "window", "softcap"},
      [](Arguments& a) {
        const auto params = attention_params(a);
        call(dynadapt_attention_forward, a["qkv"], a["mem_k"], a["mem_v"], a["mem_len"], a["slots"], a["cos"], a["sin"], a["out"],
             a["lse"], &params);
      });
  define<2>(module, "attention_backward",
            {"dout", "qkv", "out", "lse", "mem_k", "mem_v", "mem_len", "slots", "cos", "sin", "hq", "hkv", "d", "scale", "dqkv",
             "window", "softcap"},
            [](Arguments& a) {
              const auto params = attention_params(a);
              call(dynadapt_attention_backward, a["dout"], a["qkv"], a["out"], a["lse"], a["mem_k"], a["mem_v"], a["mem_len"],
                   a["slots"], a["cos"], a["sin"], a["dqkv"], &params);
            });

  define(module, "short_convolution_forward", {"x", "weight", "state", "slots", "lengths", "y", "final"}, [](Arguments& a) {
    call(dynadapt_short_convolution_forward, a["x"], a["weight"], a["state"], a["slots"], a["lengths"], a["y"], a["final"]);
  });
  define(module, "short_convolution_backward", {"dy", "x", "weight", "state", "slots", "lengths", "dx", "dweight"},
         [](Arguments& a) {
           call(dynadapt_short_convolution_backward, a["dy"], a["x"], a["weight"], a["state"], a["slots"], a["lengths"], a["dx"],
                a["dweight"]);
         });
  define(module, "delta_rule_forward",
         {"qkv", "g", "beta", "state", "slots", "lengths", "hk", "hv", "dk", "dv", "scale", "eps", "out", "final"},
         [](Arguments& a) {
           const auto params = delta_rule_params(a);
           call(dynadapt_delta_rule_forward, a["qkv"], a["g"], a["beta"], a["state"], a["slots"], a["lengths"], a["out"],
                a["final"], &params);
         });
  define(module, "delta_rule_backward",
         {"dout", "qkv", "g", "beta", "state", "slots", "lengths", "hk", "hv", "dk", "dv", "scale", "eps", "dqkv", "dg", "dbeta"},
         [](Arguments& a) {
           const auto params = delta_rule_params(a);
           call(dynadapt_delta_rule_backward, a["dout"], a["qkv"], a["g"], a["beta"], a["state"], a["slots"], a["lengths"],
                a["dqkv"], a["dg"], a["dbeta"], &params);
         });
  define(module, "delta_gates_forward", {"a", "b", "a_log", "dt_bias", "g", "beta"},
         [](Arguments& a) { call(dynadapt_delta_gates_forward, a["a"], a["b"], a["a_log"], a["dt_bias"], a["g"], a["beta"]); });
  define(module, "delta_gates_backward", {"dg", "dbeta", "a", "b", "a_log", "dt_bias", "da", "db", "da_log", "ddt_bias"},
         [](Arguments& a) {
           call(dynadapt_delta_gates_backward, a["dg"], a["dbeta"], a["a"], a["b"], a["a_log"], a["dt_bias"], a["da"], a["db"],
                a["da_log"], a["ddt_bias"]);
         });
  define(module, "gated_norm_forward", {"x", "gate", "weight", "eps", "d", "y", "rstd"}, [](Arguments& a) {
    const dynadapt_gated_norm_params params{sizeof params, a.whole("d"), a.number("eps")};
    call(dynadapt_gated_norm_forward, a["x"], a["gate"], a["weight"], a["y"], a["rstd"], &params);
  });
  define(module, "gated_norm_backward", {"dy", "x", "gate", "weight", "rstd", "d", "dx", "dgate", "dweight"}, [](Arguments& a) {
    const dynadapt_gated_norm_params params{sizeof params, a.whole("d"), 0};
    call(dynadapt_gated_norm_backward, a["dy"], a["x"], a["gate"], a["weight"], a["rstd"], a["dx"], a["dgate"], a["dweight"],
         &params);
  });
}

}  // namespace dynadapt::bindings
