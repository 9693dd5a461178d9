/* The C ABI of dynadapt.
 *
 * Tensors come in as DLTensor on the CPU (those of dynadapt_update may be on a GPU), outputs are allocated by the
 * caller and written fully, a NULL tensor stands for an optional one left out. Every call returns 0, or an error code with a
 * text in dynadapt_last_error() (of the calling thread). No exception crosses this boundary.
 * Parameter structs start with struct_size, which the caller sets to sizeof. Later versions may add members at the end, for
 * which zero means what was done before: older callers go on as they are, and a newer caller's members are refused by a library
 * that does not know them, unless they are zero.
 *
 * "act" is float32 or bfloat16, the same for all activations of a call. Matrices are row-major and
 * contiguous unless "strided", which allows a row stride larger than the width. Adapter tensors
 * [slots, rows, columns] may have any stride between slots. Sums are accumulated in float32, in an
 * order that depends neither on the number of rows in the call nor on the number of threads.
 *
 * Every argument is checked before anything is written: a call that returns DYNADAPT_INVALID has changed no output. Memory is
 * aligned to its elements, and an output shares memory with no other argument, unless the call says that it may be an input's.
 * Numbers in parameter structs are finite where nothing else is said. What returns no code says what a wrong argument gives. */
#ifndef DYNADAPT_DYNADAPT_H_
#define DYNADAPT_DYNADAPT_H_

#include "dlpack.h"

#if defined(_WIN32)
#define DYNADAPT_API
#else
#define DYNADAPT_API __attribute__((visibility("default")))
#endif

#define DYNADAPT_ABI_VERSION 2

#ifdef __cplusplus
extern "C" {
#endif

enum {
  DYNADAPT_OK = 0,
  DYNADAPT_INVALID = 1, /* an argument is wrong; the text names it, its value and what is accepted */
  DYNADAPT_OUT_OF_MEMORY = 2,
  DYNADAPT_INTERNAL = 3,
  DYNADAPT_IO = 4 /* a file can't be written; the text names it and the reason */
};

DYNADAPT_API int dynadapt_abi_version(void);

/* Text of the last error of this thread; never NULL. */
DYNADAPT_API const char* dynadapt_last_error(void);

/* The instruction set in use: "avx512_bf16", "avx512", "avx2", "neon" or "portable". The environment variable
 * DYNADAPT_CPU_ISA asks for one of them; NULL (and an error text) where it can't be had. */
DYNADAPT_API const char* dynadapt_isa(void);
/* Whether products of int8 use VNNI: 1 or 0, with the same bits. DYNADAPT_CPU_VNNI=0 leaves it; -1 (and an error text) where that
 * variable can't be satisfied. */
DYNADAPT_API int dynadapt_vnni(void);

/* Threads a call may use: what was set, else DYNADAPT_NUM_THREADS, else OpenMP's own choice. 0 unsets. */
DYNADAPT_API int dynadapt_num_threads(void);
DYNADAPT_API int dynadapt_set_num_threads(int threads);

/* `repetitions` of a register-only loop of the instructions that products of float (bf16 = 0) or bfloat16 (1) are made of, on every
 * thread that a call may use. Returns the FLOPs made, for the caller to time: the peak of the instruction set in use; -1 for a wrong
 * argument. */
DYNADAPT_API int64_t dynadapt_peak_flops(int bf16, int64_t repetitions);

/* Whether calls show in NVIDIA's profilers, as NVTX ranges of the domain "dynadapt" with the names of the ops: 1 where the
 * environment variable DYNADAPT_NVTX is 1, or 0 with the reason in dynadapt_last_error(). Looked up once, at the first call. */
DYNADAPT_API int dynadapt_nvtx(void);

/* ---- packed matrices ------------------------------------------------------------------------- */

/* A weight [N, K] in the panel order of the kernels: the only copy a model needs. Its values have a dtype, that of the activations it
 * is multiplied with; what they are stored as is that dtype, or blocks of integers that are expanded where they are used. */
typedef struct dynadapt_matrix dynadapt_matrix;

DYNADAPT_API int dynadapt_matrix_create(const DLTensor* weight, dynadapt_matrix** out);
/* From the blocks of a GGUF tensor, kept as they are: storage "q8_0", "q4_0", "q4_1", "q5_0", "q4_k" or "q6_k", `blocks` the file's
 * `bytes` bytes, rows one after the other, columns a multiple of a block's 32 or 256. The values are those of the format's definition
 * in float32, to the bit, or with bf16 = 1 these rounded to bfloat16. Rows can be read and not changed. */
DYNADAPT_API int dynadapt_matrix_create_quantised(const char* storage, int64_t rows, int64_t columns, const uint16_t* blocks,
                                                  int64_t bytes, int bf16, dynadapt_matrix** out);
/* One that keeps int8 with a scale per row and group of 64 columns, rounded from weight f32 [N, K]; `dtype`, float32 or bfloat16,
 * is that of the activations it is multiplied with and of rows read from it. Linear layers over such matrices (all parts, or
 * none) quantise their activations in groups of 64 as well, and so does the cross-entropy for its logits. It can't be updated. */
DYNADAPT_API int dynadapt_matrix_create_int8(const DLTensor* weight, DLDataType dtype, dynadapt_matrix** out);
DYNADAPT_API void dynadapt_matrix_destroy(dynadapt_matrix* matrix);
/* Of NULL: -1, NULL, and a dtype of 0 bits, with a text in dynadapt_last_error(). */
DYNADAPT_API int64_t dynadapt_matrix_rows(const dynadapt_matrix* matrix);
DYNADAPT_API int64_t dynadapt_matrix_columns(const dynadapt_matrix* matrix);
DYNADAPT_API int64_t dynadapt_matrix_bytes(const dynadapt_matrix* matrix);
DYNADAPT_API DLDataType dynadapt_matrix_dtype(const dynadapt_matrix* matrix);
/* What the values are stored as: "float32", "bfloat16" or the name of a format of blocks. */
DYNADAPT_API const char* dynadapt_matrix_storage(const dynadapt_matrix* matrix);

/* out[i] = weight[index[i]]: index i64 [n], out act [n, K] of the matrix's dtype. */
DYNADAPT_API int dynadapt_matrix_gather_rows(const dynadapt_matrix* matrix, const DLTensor* index, const DLTensor* out);
/* weight[rows[i]] = values[i], rounded to the matrix's dtype: rows i32 [n], each once, or NULL for all, values f32 [n, K].
 * A matrix of blocks is refused. */
DYNADAPT_API int dynadapt_matrix_update_rows(dynadapt_matrix* matrix, const DLTensor* rows, const DLTensor* values);
/* out [N, K] = weight, of the matrix's dtype. */
DYNADAPT_API int dynadapt_matrix_unpack(const dynadapt_matrix* matrix, const DLTensor* out);

/* ---- linear with a low-rank adapter ---------------------------------------------------------- */

typedef struct {
  uint32_t struct_size;
  float scale; /* of the low-rank product */
  /* Where the parts differ (else both NULL): the rank of each, from 0 (no adapter) to R, the largest, and the scale of each. A
   * then has sum(part_ranks) rows, those of the parts one behind the other, and u and dU as many columns; of Bt, a part has the
   * upper rows of its columns. `scale` is not read. */
  const int64_t* part_ranks;
  const float* part_scales;
  /* Where slots differ (else 0 and NULL): slot_table [slot_count, 2 + P] has the first element of a slot's A and of its Bt, then the
   * rank of each part; slot_scales [slot_count, P]. A and Bt (dA and dBt) are then flat, act (f32) [elements], and may be one buffer, in
   * which A [sum of the slot's ranks, K] and Bt [its largest rank, O] lie as those of a call with its ranks alone do; a slot whose
   * ranks are all 0 has no adapter. u and dU have at least as many columns as the widest slot of the call has rows of A; those beyond a
   * slot's own are neither read nor written. `scale`, part_ranks and part_scales are not read. */
  int64_t slot_count;
  const int64_t* slot_table;
  const float* slot_scales;
} dynadapt_linear_params;

/* y = x W^T + bias + scale * (x A_s,p^T) Bt_s,p. The P parts' outputs stand side by side in y [N, O].
 * x act [N, K] strided; bias act [O] or NULL; A act [slots, P*R, K], Bt act [slots, R, O], slots i32 [S]
 * and u act [N, P*R] (out, = x A^T) all given or all NULL. Rows i*N/S .. of x belong to slots[i]. */
DYNADAPT_API int dynadapt_linear_forward(const DLTensor* x, const dynadapt_matrix* const* parts, int32_t part_count,
                                         const DLTensor* bias, const DLTensor* A, const DLTensor* Bt, const DLTensor* slots,
                                         const DLTensor* u, const DLTensor* y, const dynadapt_linear_params* params);

/* dU_p = scale * dy_p Bt_s,p^T (act [N, P*R], out) and dx = dy W + dU A_s (act [N, K], out). */
DYNADAPT_API int dynadapt_linear_backward(const DLTensor* dy, const dynadapt_matrix* const* parts, int32_t part_count,
                                          const DLTensor* A, const DLTensor* Bt, const DLTensor* slots, const DLTensor* dU,
                                          const DLTensor* dx, const dynadapt_linear_params* params);

typedef struct {
  uint32_t struct_size;
  float scale;
  int32_t accumulate; /* add to what dA and dBt hold */
  int32_t part_count;
  const int64_t* part_sizes; /* columns of dy that belong to each part */
  const int64_t* part_ranks; /* as in dynadapt_linear_params; rows of dBt beyond a part's rank become zero */
  const float* part_scales;
  int64_t slot_count; /* as in dynadapt_linear_params */
  const int64_t* slot_table;
  const float* slot_scales;
} dynadapt_lora_gradient_params;

/* dA_s = dU^T x (f32 [slots, P*R, K]) and dBt_s,p = scale * u_p^T dy_p (f32 [slots, R, O]); each slot may
 * occur once in slots, and slots that don't occur are left alone. */
DYNADAPT_API int dynadapt_lora_gradient(const DLTensor* dy, const DLTensor* x, const DLTensor* u, const DLTensor* dU,
                                        const DLTensor* slots, const DLTensor* dA, const DLTensor* dBt,
                                        const dynadapt_lora_gradient_params* params);

typedef struct {
  uint32_t struct_size;
  int32_t accumulate;
  float softcap; /* of logits, 0: none; of gradients behind a cross-entropy alone, as is scale */
  float scale;   /* of adapters of the head; 0 where there are none */
} dynadapt_gradient_params;

/* dW = dy[:, rows]^T x: dy act [N, O] strided, x act [N, K], rows i32 [n] or NULL for all, dW f32 [n, K]. */
DYNADAPT_API int dynadapt_weight_gradient(const DLTensor* dy, const DLTensor* x, const DLTensor* rows, const DLTensor* dW,
                                          const dynadapt_gradient_params* params);

/* out[o] = sqrt(sum_m dy[m, o]^2 |x_m|^2), f32 [O]: the norm each row of dW would have were the x_m orthogonal. */
DYNADAPT_API int dynadapt_row_scores(const DLTensor* dy, const DLTensor* x, const DLTensor* out);

/* db f32 [O] += the column sums of dy act [N, O], strided: the gradient of a linear layer's bias. */
DYNADAPT_API int dynadapt_bias_gradient(const DLTensor* dy, const DLTensor* db);

/* ---- linear cross-entropy -------------------------------------------------------------------- */

/* nll[n] = lse[n] - logit[n, targets[n]] and dh = weights[n] * (softmax(h W^T) W - W[target]).
 * h act [N, H], targets i64 [N] (negative: not scored, nll 0, dh 0), weights f32 [N] or NULL for ones,
 * nll f32 [N], lse f32 [N], dh act [N, H] or NULL. */
DYNADAPT_API int dynadapt_cross_entropy(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets,
                                        const DLTensor* weights, const DLTensor* nll, const DLTensor* lse, const DLTensor* dh);

typedef struct {
  uint32_t struct_size;
  float softcap; /* logits are softcap * tanh(logit / softcap); 0: as they are */
  float scale;   /* of adapters; 0 where there are none */
} dynadapt_cross_entropy_params;

/* The same of soft-capped logits. */
DYNADAPT_API int dynadapt_softcapped_cross_entropy(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets,
                                                   const DLTensor* weights, const DLTensor* nll, const DLTensor* lse,
                                                   const DLTensor* dh, const dynadapt_cross_entropy_params* params);

/* nll and lse as there; kl[n] = sum_k p_k (logp[n, k] - (logit[n, ids[n, k]] - lse[n])), p_k = exp(logp[n, k]): from a teacher of which K
 * tokens of each row are known; dh = weights[n] * (P softmax(h W^T) W - sum_k p_k W[ids[n, k]]), P = sum_k p_k.
 * ids i64 [N, K] (negative: none), logp f32 [N, K], kl f32 [N], the others as in dynadapt_cross_entropy. */
DYNADAPT_API int dynadapt_distillation(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets,
                                       const DLTensor* ids, const DLTensor* logp, const DLTensor* weights, const DLTensor* nll,
                                       const DLTensor* lse, const DLTensor* kl, const DLTensor* dh,
                                       const dynadapt_cross_entropy_params* params);

/* Cross-entropy of logits h W^T + scale u Bt, u = h A^T: A act [slots, R, H], Bt act [slots, R, V], slots i32 [N] the adapter of each row,
 * those of one adapter side by side; u act [N, R] is written. dU act [N, R] = scale * g Bt^T with g = weights * (softmax - onehot), and dh =
 * g W + dU A: both, dU alone where nothing below learns, or both NULL. The others as in dynadapt_cross_entropy. */
DYNADAPT_API int dynadapt_adapted_cross_entropy(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* A,
                                                const DLTensor* Bt, const DLTensor* slots, const DLTensor* targets,
                                                const DLTensor* weights, const DLTensor* u, const DLTensor* nll,
                                                const DLTensor* lse, const DLTensor* dh, const DLTensor* dU,
                                                const dynadapt_cross_entropy_params* params);

/* dA f32 [slots, R, H] = dU^T h and dBt f32 [slots, R, V] = scale * u^T g of each adapter that has rows, with lse, u and dU from
 * dynadapt_adapted_cross_entropy. */
DYNADAPT_API int dynadapt_adapted_cross_entropy_gradient(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* Bt,
                                                         const DLTensor* slots, const DLTensor* targets, const DLTensor* weights,
                                                         const DLTensor* lse, const DLTensor* u, const DLTensor* dU,
                                                         const DLTensor* dA, const DLTensor* dBt,
                                                         const dynadapt_gradient_params* params);

/* dW = (weights * (softmax(h W^T) - onehot(targets)))^T h, f32 [V, H], with lse from dynadapt_cross_entropy. */
DYNADAPT_API int dynadapt_cross_entropy_weight_gradient(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets,
                                                        const DLTensor* weights, const DLTensor* lse, const DLTensor* dW,
                                                        const dynadapt_gradient_params* params);

/* ---- norms ----------------------------------------------------------------------------------- */

enum {
  DYNADAPT_NORM_RMS = 0,
  DYNADAPT_NORM_LAYER = 1
};

typedef struct {
  uint32_t struct_size;
  int32_t kind;
  float eps; /* forward only */
} dynadapt_norm_params;

/* res = x + delta, rounded to act; y = norm(res) * weight + bias; stat f32 [N, 2] = (mean or 0, 1 / deviation).
 * x, delta, res, y act [N, H], weight act [H] or f32, bias act [H]; delta, bias may be NULL, and res where delta is. res or y may be the
 * memory of x or delta. eps is at least 0. */
DYNADAPT_API int dynadapt_norm_forward(const DLTensor* x, const DLTensor* delta, const DLTensor* weight, const DLTensor* bias,
                                       const DLTensor* res, const DLTensor* y, const DLTensor* stat,
                                       const dynadapt_norm_params* params);

/* dx = gradient through the norm + dres (may be NULL); dweight and dbias f32 [H] are added to unless NULL. y act [N, H],
 * unless NULL, becomes the forward's output again, bit for bit; bias act [H] or NULL as in forward, read for that alone.
 * dx may be the memory of dy or dres. */
DYNADAPT_API int dynadapt_norm_backward(const DLTensor* dy, const DLTensor* res, const DLTensor* weight, const DLTensor* stat,
                                        const DLTensor* dres, const DLTensor* dx, const DLTensor* dweight, const DLTensor* dbias,
                                        const DLTensor* bias, const DLTensor* y, const dynadapt_norm_params* params);

typedef struct {
  uint32_t struct_size;
  int32_t query_heads, kv_heads, head_dim;
  float eps; /* forward only */
} dynadapt_head_norm_params;

/* RMS norm of every query and key head of qkv act [N, (hq + 2 hkv) d]; values are copied. q_weight, k_weight act [d], or both f32,
 * rstd f32 [N, hq + hkv]. With q_weight act [hq d] and k_weight act [hkv d] all query heads of a row are normalised as one and
 * all its key heads, rstd is f32 [N, 2]. out may be the memory of qkv. */
DYNADAPT_API int dynadapt_head_norm_forward(const DLTensor* qkv, const DLTensor* q_weight, const DLTensor* k_weight,
                                            const DLTensor* out, const DLTensor* rstd, const dynadapt_head_norm_params* params);
/* dq_weight, dk_weight f32, of the weights' sizes, are added to unless NULL. dqkv may be the memory of dout or qkv. */
DYNADAPT_API int dynadapt_head_norm_backward(const DLTensor* dout, const DLTensor* qkv, const DLTensor* q_weight,
                                             const DLTensor* k_weight, const DLTensor* rstd, const DLTensor* dqkv,
                                             const DLTensor* dq_weight, const DLTensor* dk_weight,
                                             const dynadapt_head_norm_params* params);

/* ---- activations ----------------------------------------------------------------------------- */

enum {
  DYNADAPT_SWIGLU = 0,
  DYNADAPT_GELU_TANH = 1,
  DYNADAPT_GELU = 2,
  DYNADAPT_GEGLU_TANH = 3,
  DYNADAPT_GLU = 4
};

typedef struct {
  uint32_t struct_size;
  int32_t kind;
} dynadapt_activation_params;

/* y act [N, F] from h act [N, 2F] (SwiGLU: silu(h[:, :F]) * h[:, F:]; GEGLU, GLU: GELU, the sigmoid in its
 * place) or [N, F]. */
DYNADAPT_API int dynadapt_activation_forward(const DLTensor* h, const DLTensor* y, const dynadapt_activation_params* params);
/* dh like h, may be its memory or that of a dy of its shape; y act [N, F], unless NULL, becomes the forward's output again. */
DYNADAPT_API int dynadapt_activation_backward(const DLTensor* dy, const DLTensor* h, const DLTensor* dh, const DLTensor* y,
                                              const dynadapt_activation_params* params);

/* ---- embedding ------------------------------------------------------------------------------- */

/* out[n] = table[tokens[n]] (+ position_table[positions[n]]): tokens, positions i64 [N], table act [V, H],
 * position_table act [P, H] and positions both given or both NULL, out act [N, H]. */
DYNADAPT_API int dynadapt_embedding_forward(const DLTensor* tokens, const DLTensor* table, const DLTensor* position_table,
                                            const DLTensor* positions, const DLTensor* out);
/* dtable f32 [V, H] += dout act [N, H], each row where its token stands. */
DYNADAPT_API int dynadapt_embedding_backward(const DLTensor* tokens, const DLTensor* dout, const DLTensor* dtable);

typedef struct {
  uint32_t struct_size;
  int32_t accumulate; /* backward only */
  float scale;
} dynadapt_adapted_embedding_params;

/* out[n] += scale * A_s[:, tokens[n]]^T Bt_s, rounded once: an adapter on the embedding. tokens i64 [N], A act [slots, R, V],
 * Bt act [slots, R, H] and out act [N, H]; slots i32 [S], S a divisor of N: rows i N / S.. belong to slots[i]. */
DYNADAPT_API int dynadapt_adapted_embedding_forward(const DLTensor* tokens, const DLTensor* A, const DLTensor* Bt,
                                                    const DLTensor* slots, const DLTensor* out,
                                                    const dynadapt_adapted_embedding_params* params);
/* dA f32 [slots, R, V], dBt f32 [slots, R, H] of the slots of the call, which are distinct, from dout act [N, H]. */
DYNADAPT_API int dynadapt_adapted_embedding_backward(const DLTensor* tokens, const DLTensor* dout, const DLTensor* A,
                                                     const DLTensor* Bt, const DLTensor* slots, const DLTensor* dA,
                                                     const DLTensor* dBt, const dynadapt_adapted_embedding_params* params);

/* ---- attention over [memory; segment] -------------------------------------------------------- */

typedef struct {
  uint32_t struct_size;
  int32_t query_heads, kv_heads, head_dim;
  float scale;
  int32_t window; /* a query sees its own position and the window - 1 before it; 0: all before it. 1 is refused. */
  float softcap;  /* scores are softcap * tanh(score / softcap); 0: as they are */
} dynadapt_attention_params;

/* Causal attention of the S streams' segments, N = S T rows. qkv act [N, (hq + 2 hkv) d], keys before rotation;
 * mem_k, mem_v act [slots, C, hkv d] and mem_len i32 [slots] all given or all NULL: entry j of a slot has window
 * position j and every query sees it, unless a window ends before; segment token t has position mem_len + t; slots i32 [S]; cos, sin f32 [P, d/2]
 * or both NULL; out act [N, hq d]; lse f32 [S, hq, T]. */
DYNADAPT_API int dynadapt_attention_forward(const DLTensor* qkv, const DLTensor* mem_k, const DLTensor* mem_v,
                                            const DLTensor* mem_len, const DLTensor* slots, const DLTensor* cos,
                                            const DLTensor* sin, const DLTensor* out, const DLTensor* lse,
                                            const dynadapt_attention_params* params);
/* dqkv like qkv; memory gets no gradient. */
DYNADAPT_API int dynadapt_attention_backward(const DLTensor* dout, const DLTensor* qkv, const DLTensor* out, const DLTensor* lse,
                                             const DLTensor* mem_k, const DLTensor* mem_v, const DLTensor* mem_len,
                                             const DLTensor* slots, const DLTensor* cos, const DLTensor* sin,
                                             const DLTensor* dqkv, const dynadapt_attention_params* params);

/* ---- layers of the gated delta rule ---------------------------------------------------------- */

/* y = silu(z), z[t, c] = sum_w weight[c, w] x[t - W + 1 + w, c], of the S streams' segments, N = S T rows. x, y act [N, C], their
 * rows may be apart; weight act [C, W]; state act [slots, W - 1, C] the rows before each slot's segment, or NULL: zeros; slots
 * i32 [S]; lengths i32 [S] the rows of each stream that count, or NULL: all T. y is 0 in the others. final act [S, W - 1, C], or
 * NULL, becomes the last rows that count. */
DYNADAPT_API int dynadapt_short_convolution_forward(const DLTensor* x, const DLTensor* weight, const DLTensor* state,
                                                    const DLTensor* slots, const DLTensor* lengths, const DLTensor* y,
                                                    const DLTensor* final);
/* dx like x; dweight f32 [C, W] is added to unless NULL; the state gets no gradient. Rows of dy, x, dx may be apart. */
DYNADAPT_API int dynadapt_short_convolution_backward(const DLTensor* dy, const DLTensor* x, const DLTensor* weight,
                                                     const DLTensor* state, const DLTensor* slots, const DLTensor* lengths,
                                                     const DLTensor* dx, const DLTensor* dweight);

typedef struct {
  uint32_t struct_size;
  int32_t key_heads, value_heads, key_dim, value_dim;
  float scale, eps;
} dynadapt_delta_rule_params;

/* S_t = e^g_t S_{t-1} + k_t (beta_t (v_t - e^g_t S_{t-1}' k_t))', o_t = S_t' q_t, with k = k / sqrt(|k|^2 + eps) and q likewise,
 * times scale. qkv act [N, 2 hk dk + hv dv], N = S T rows; g, beta f32 [N, hv]; state f32 [slots, hv, dk, dv] or NULL: zeros;
 * slots i32 [S]; lengths i32 [S] the rows of each stream that count, or NULL: all T. out act [N, hv dv], 0 in the others; final
 * f32 [S, hv, dk, dv], or NULL, becomes the state behind the last row that counts. hv is a multiple of hk. */
DYNADAPT_API int dynadapt_delta_rule_forward(const DLTensor* qkv, const DLTensor* g, const DLTensor* beta, const DLTensor* state,
                                             const DLTensor* slots, const DLTensor* lengths, const DLTensor* out,
                                             const DLTensor* final, const dynadapt_delta_rule_params* params);
/* dqkv like qkv, dg and dbeta f32 [N, hv]; states get no gradient. */
DYNADAPT_API int dynadapt_delta_rule_backward(const DLTensor* dout, const DLTensor* qkv, const DLTensor* g, const DLTensor* beta,
                                              const DLTensor* state, const DLTensor* slots, const DLTensor* lengths,
                                              const DLTensor* dqkv, const DLTensor* dg, const DLTensor* dbeta,
                                              const dynadapt_delta_rule_params* params);

/* g = -exp(a_log) softplus(a + dt_bias), beta = sigmoid(b): a, b act [N, hv], their rows may be apart; a_log, dt_bias f32 [hv];
 * g, beta f32 [N, hv]. */
DYNADAPT_API int dynadapt_delta_gates_forward(const DLTensor* a, const DLTensor* b, const DLTensor* a_log,
                                              const DLTensor* dt_bias, const DLTensor* g, const DLTensor* beta);
/* dg, dbeta f32 [N, hv]; da, db like a, b, may be their memory; da_log, ddt_bias f32 [hv] are added to unless NULL. */
DYNADAPT_API int dynadapt_delta_gates_backward(const DLTensor* dg, const DLTensor* dbeta, const DLTensor* a, const DLTensor* b,
                                               const DLTensor* a_log, const DLTensor* dt_bias, const DLTensor* da,
                                               const DLTensor* db, const DLTensor* da_log, const DLTensor* ddt_bias);

typedef struct {
  uint32_t struct_size;
  int32_t head_dim;
  float eps; /* forward only */
} dynadapt_gated_norm_params;

/* y = rms_norm(x) * weight * silu(gate), each head of d normalised: x, gate, y act [N, H d], their rows may be apart; weight act
 * [d]; rstd f32 [N, H]. eps is at least 0. */
DYNADAPT_API int dynadapt_gated_norm_forward(const DLTensor* x, const DLTensor* gate, const DLTensor* weight, const DLTensor* y,
                                             const DLTensor* rstd, const dynadapt_gated_norm_params* params);
/* dx, dgate like x; dweight f32 [d] is added to unless NULL. dx may be the memory of dy or x, dgate that of gate. */
DYNADAPT_API int dynadapt_gated_norm_backward(const DLTensor* dy, const DLTensor* x, const DLTensor* gate, const DLTensor* weight,
                                              const DLTensor* rstd, const DLTensor* dx, const DLTensor* dgate,
                                              const DLTensor* dweight, const dynadapt_gated_norm_params* params);

/* ---- linear read-out with squared error ------------------------------------------------------ */

/* pred = h . weight + bias, loss = (pred - target)^2, dh = 2 weights (pred - target) weight. h act [N, H], weight act
 * [H], bias f32 [1] or NULL, target f32 [N], weights f32 [N] or NULL for ones, pred, loss f32 [N]; dh act [N, H],
 * dweight f32 [H], dbias f32 [1] may be NULL, the last two are added to. */
DYNADAPT_API int dynadapt_linear_mse(const DLTensor* h, const DLTensor* weight, const DLTensor* bias, const DLTensor* target,
                                     const DLTensor* weights, const DLTensor* pred, const DLTensor* loss, const DLTensor* dh,
                                     const DLTensor* dweight, const DLTensor* dbias);

/* ---- optimizer step -------------------------------------------------------------------------- */

enum {
  DYNADAPT_SGD = 0,
  DYNADAPT_ADAM = 1,
  DYNADAPT_ADAMW = 2,
  DYNADAPT_RMS = 3,
  DYNADAPT_LION = 4
};

typedef struct {
  uint32_t struct_size;
  int32_t kind;
  double decay;        /* 0 to 1, towards the prior; 0: none */
  double clip;         /* largest norm of a stream's gradient, may be infinite; 0: none */
  double beta1, beta2; /* 0 to 1: adam, adamw, lion */
  double eps;          /* at least 0: adam, adamw, rms */
  double weight_decay; /* at least 0: adamw, lion */
  double momentum;     /* 0 to 1: sgd */
  /* f32 [P], what the learning rate of each element is multiplied with (weight_decay goes with it, decay does not); NULL: 1 */
  const DLTensor* rate_factor;
} dynadapt_update_params;

/* One optimizer step of the streams in slots i32 [S] (each once; -1, as often as wanted, for a stream that does not move:
 * norm 0, skipped 0, nothing else changes). master, grad, first, second f32 [slots, P]; stat, prior_rate f32 [P]; prior
 * f32 [P] of all slots, or [slots, P]; working act [slots, P]; lr f32 [slots]; step i32 [slots], counted up; norms f32 [S]
 * and skipped i32 [S] (1: the gradient was not finite, the stream stays as it was) out. grad is zero afterwards. NULL may
 * be: first (where momentum or beta1 is 0), second (all but adam, adamw), prior (decay 0), stat (all but rms), working, prior_rate. */
DYNADAPT_API int dynadapt_update(const DLTensor* master, const DLTensor* grad, const DLTensor* first, const DLTensor* second,
                                 const DLTensor* prior, const DLTensor* stat, const DLTensor* working, const DLTensor* slots,
                                 const DLTensor* lr, const DLTensor* step, const DLTensor* norms, const DLTensor* skipped,
                                 const DLTensor* prior_rate, const dynadapt_update_params* params);

/* ---- the whole step on a loaded model -------------------------------------------------------- */

/* A decoder that scores streams of tokens and learns from each segment right after scoring it, on the CPU: dynamic
 * evaluation with LoRA adapters, one per stream. The step is that of dynadapt's Python Engine, in the same order, with the
 * same kernels and, for the same seed, from the same adapters. Calls on one engine must not overlap. docs/c.md has examples. */
typedef struct dynadapt_engine dynadapt_engine;

enum {
  DYNADAPT_BF16 = 0,
  DYNADAPT_F32 = 1
};

enum {
  DYNADAPT_SAME = 0,
  DYNADAPT_INT8 = 1
};

/* Start from dynadapt_engine_params_default and change what should differ. */
typedef struct {
  uint32_t struct_size;
  int32_t dtype;         /* DYNADAPT_BF16 or DYNADAPT_F32: of weights and activations; sums and masters are float32 */
  int32_t streams;       /* S: independent texts, each with an adapter, optimizer state and memory of its own */
  int32_t segment;       /* T: the most tokens that a step scores of a stream */
  int32_t every;         /* an update at every k-th segment of a stream */
  int32_t memory_length; /* keys and values of this many tokens before the segment are kept; 0: no memory */
  int32_t memory_sinks;  /* and of this many at the document's beginning, in front of them */
  int32_t rank;          /* of the adapters; 0: nothing learns */
  double alpha;          /* the low-rank product is scaled by alpha / rank; 0: alpha is twice the rank */
  const char* targets;   /* the linears that get an adapter: "all", "attn" (q, k, v, o) or "mlp" (gate, up, down) */
  int32_t first_layer;   /* layers first_layer..last_layer - 1 get adapters */
  int32_t last_layer;    /* -1: up to the last */
  uint64_t seed;         /* of the adapters' initial A */
  int32_t optimizer;     /* DYNADAPT_ADAM, DYNADAPT_ADAMW, DYNADAPT_LION or DYNADAPT_SGD */
  double lr;
  double beta1, beta2; /* adam, adamw, lion */
  double eps;          /* adam, adamw */
  double clip;         /* largest norm of a stream's gradient; 0: none */
  double decay;        /* the share of the way back to the start that each update goes; 0: none */
  double weight_decay; /* adamw, lion */
  double momentum;     /* sgd */
  int32_t base;        /* DYNADAPT_SAME, or DYNADAPT_INT8: linear weights and head as dynadapt_matrix_create_int8 keeps them */
} dynadapt_engine_params;

/* Fills a struct of `struct_size` bytes (give sizeof) with the defaults: bf16, one stream, segment 512, no memory (sinks 4),
 * rank 16 with alpha twice the rank, all linears, Adam with lr 2e-3, betas 0.9 and 0.999, eps 1e-8, clip 1. */
DYNADAPT_API int dynadapt_engine_params_default(dynadapt_engine_params* params, uint32_t struct_size);

/* Loads a Hugging Face directory (config.json and safetensors in F32, F16 or BF16; Llama, Mistral, Qwen2,
 * Qwen3, SmolLM3, OLMo 2 and 3) and takes all the memory that steps will need. *out is to be destroyed. */
DYNADAPT_API int dynadapt_engine_create(const dynadapt_engine_params* params, const char* model_dir, dynadapt_engine** out);
DYNADAPT_API void dynadapt_engine_destroy(dynadapt_engine* engine);

/* What became of the update of a stream. */
enum {
  DYNADAPT_NOT_DUE = 0,
  DYNADAPT_UPDATED = 1,
  DYNADAPT_SKIPPED = 2 /* its gradient was not finite: it stays as it was */
};

/* What a step did. Zero the struct and set struct_size; the arrays are the caller's, or NULL. */
typedef struct {
  uint32_t struct_size;
  int32_t updated, skipped;                                             /* out: streams */
  int64_t scored;                                                       /* out: tokens */
  double nll_sum;                                                       /* out: of their NLLs, in nats */
  int64_t forward_flops, backward_flops, update_flops, recompute_flops; /* out: of this step */
  int32_t* outcome; /* [S] out: DYNADAPT_NOT_DUE, DYNADAPT_UPDATED or DYNADAPT_SKIPPED */
  float* grad_norm; /* [S] out: before clipping; -1 where no update was due */
} dynadapt_engine_report;

/* Scores each stream's tokens, then learns from them. tokens [S, T + 1], row by row, with 1 <= T <= segment: inputs are the
 * first T of a row and targets the last T, so that a stream's next call starts with the token that this one ended with.
 * lengths [S], or NULL for all T: how many targets of each row count; a stream with 0 rests. nll [S, T] in nats, out, computed
 * before the update that saw these tokens; 0 beyond lengths. All targets that count weigh alike in what is learned. report may be
 * NULL. Bad tokens change nothing. */
DYNADAPT_API int dynadapt_engine_step(dynadapt_engine* engine, const int32_t* tokens, int32_t T, const int32_t* lengths,
                                      float* nll, dynadapt_engine_report* report);

/* A new document begins in the stream: its memory is cleared. What it has learned stays; see dynadapt_engine_reset. */
DYNADAPT_API int dynadapt_engine_enter(dynadapt_engine* engine, int32_t stream);
/* Adapter and optimizer state of the stream back to the start; its memory stays. */
DYNADAPT_API int dynadapt_engine_reset(dynadapt_engine* engine, int32_t stream);
/* The learning rate of the stream from now on. */
DYNADAPT_API int dynadapt_engine_set_lr(dynadapt_engine* engine, int32_t stream, double lr);

/* Writes the stream's adapter as a PEFT directory, made if need be: adapter_config.json, adapter_model.safetensors in float32. */
DYNADAPT_API int dynadapt_engine_save(dynadapt_engine* engine, int32_t stream, const char* directory);
/* Takes a PEFT adapter of the same rank, alpha and targets; its optimizer state starts anew. Decay and reset still lead to the
 * engine's own start. */
DYNADAPT_API int dynadapt_engine_load_adapter(dynadapt_engine* engine, int32_t stream, const char* directory);

typedef struct {
  uint32_t struct_size;
  int32_t streams, segment;
  int32_t window; /* tokens that attention sees at most: sinks, memory and segment */
  int64_t layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, max_positions;
  int64_t parameters;         /* of the model */
  int64_t learned_parameters; /* per stream */
  int64_t bytes;              /* that the engine holds: weights, adapters, optimizer state, memory, activations */
  char family[16];            /* "llama", "qwen2", "qwen3", "smollm3" or "olmo2" */
} dynadapt_engine_info_t;
/* Set struct_size before the call. */
DYNADAPT_API int dynadapt_engine_info(const dynadapt_engine* engine, dynadapt_engine_info_t* info);

#ifdef __cplusplus
}
#endif
#endif /* DYNADAPT_DYNADAPT_H_ */
