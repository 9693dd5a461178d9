/* One layer adapts to a few tokens, on plain buffers: a linear with a low-rank adapter, linear cross-entropy behind it, the way
 * back, and one Adam step of the adapter. Every result is held against plain loops.
 *
 *     h = x W^T + scale * (x A^T) Bt        W [H, K] frozen, A [R, K] and Bt [R, H] learn
 *     nll = cross-entropy of softmax(h head^T), head [V, H] frozen */
#include <dynadapt/dynadapt.h>

#include "plain_loops.h"

enum {
  N = 24,
  K = 20,
  H = 16,
  R = 4,
  V = 50,
  P = R * K + R * H
};
static const float kScale = 2, kLearningRate = 0.05f;

/* Views of buffers: DLTensor points at its shape, so that lives as long as the view. */
typedef struct {
  DLTensor tensor;
  int64_t shape[3];
} View;

static const DLTensor* view(View* out, void* data, uint8_t code, uint8_t bits, int32_t ndim, int64_t a, int64_t b, int64_t c) {
  *out = (View){.shape = {a, b, c}};
  out->tensor = (DLTensor){.data = data, .device = {kDLCPU, 0}, .ndim = ndim, .dtype = {code, bits, 1}, .shape = out->shape};
  return &out->tensor; /* strides NULL: contiguous */
}
#define FLOATS(view_, data, ndim, ...) view(&view_, data, kDLFloat, 32, ndim, __VA_ARGS__)
#define INT32S(view_, data, count) view(&view_, data, kDLInt, 32, 1, count, 1, 1)
#define INT64S(view_, data, count) view(&view_, data, kDLInt, 64, 1, count, 1, 1)

static void check(int status) {
  if (status == DYNADAPT_OK) return;
  fprintf(stderr, "status %d: %s\n", status, dynadapt_last_error());
  exit(1);
}

/* Buffers: the library's in float, the plain loops' in double. */
static float x[N * K], W[H * K], head[V * H], adapter[P], h[N * H], u[N * R], nll[N], lse[N], dh[N * H], dU[N * R], dx[N * K],
    gradient[P], first[P], second[P], norm[1];
static double wx[N * K], wW[H * K], whead[V * H], wadapter[P], wh[N * H], wu[N * R], wnll[N], wlogits[N * V], wdh[N * H],
    wdU[N * R], wdx[N * K], wgradient[P];
static long long targets[N];

/* h and nll, and with `backward` the gradients, by the library. A and Bt lie one after the other in `adapter`, as their
 * gradients do in `gradient`, so that one update moves both. */
static float library(const dynadapt_matrix* weight, const dynadapt_matrix* vocabulary, int backward) {
  View vx, vA, vBt, vslots, vu, vh, vtargets, vweights, vnll, vlse, vdh, vdU, vdx, vdA, vdBt;
  int32_t slot[1] = {0}; /* all rows belong to the first adapter */
  float weights[N], mean = 0;
  for (int i = 0; i < N; i++) weights[i] = 1.0f / N; /* the loss is the mean */
  const DLTensor *pA = FLOATS(vA, adapter, 3, 1, R, K), *pBt = FLOATS(vBt, adapter + R * K, 3, 1, R, H);
  const DLTensor *px = FLOATS(vx, x, 2, N, K, 1), *pu = FLOATS(vu, u, 2, N, R, 1), *ph = FLOATS(vh, h, 2, N, H, 1);
  const DLTensor* pslots = INT32S(vslots, slot, 1);
  const dynadapt_linear_params linear = {.struct_size = sizeof linear, .scale = kScale};
  check(dynadapt_linear_forward(px, &weight, 1, NULL, pA, pBt, pslots, pu, ph, &linear));

  const DLTensor* pdh = FLOATS(vdh, dh, 2, N, H, 1);
  check(dynadapt_cross_entropy(ph, vocabulary, INT64S(vtargets, targets, N), FLOATS(vweights, weights, 1, N, 1, 1),
                               FLOATS(vnll, nll, 1, N, 1, 1), FLOATS(vlse, lse, 1, N, 1, 1), backward ? pdh : NULL));
  for (int i = 0; i < N; i++) mean += nll[i] / N;
  if (!backward) return mean;

  const DLTensor* pdU = FLOATS(vdU, dU, 2, N, R, 1);
  check(dynadapt_linear_backward(pdh, &weight, 1, pA, pBt, pslots, pdU, FLOATS(vdx, dx, 2, N, K, 1), &linear));
  const int64_t part_sizes[1] = {H};
  const dynadapt_lora_gradient_params lora = {
      .struct_size = sizeof lora, .scale = kScale, .part_count = 1, .part_sizes = part_sizes};
  check(dynadapt_lora_gradient(pdh, px, pu, pdU, pslots, FLOATS(vdA, gradient, 3, 1, R, K),
                               FLOATS(vdBt, gradient + R * K, 3, 1, R, H), &lora));
  return mean;
}

/* One Adam step on `gradient`, clipped to norm 1. */
static void update(void) {
  View vmaster, vgradient, vfirst, vsecond, vslots, vlr, vstep, vnorm, vskipped;
  int32_t slot[1] = {0}, step[1] = {0}, skipped[1];
  float lr[1] = {kLearningRate};
  const dynadapt_update_params adam = {
      .struct_size = sizeof adam, .kind = DYNADAPT_ADAM, .clip = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
  check(dynadapt_update(FLOATS(vmaster, adapter, 2, 1, P, 1), FLOATS(vgradient, gradient, 2, 1, P, 1),
                        FLOATS(vfirst, first, 2, 1, P, 1), FLOATS(vsecond, second, 2, 1, P, 1), NULL, NULL, NULL,
                        INT32S(vslots, slot, 1), FLOATS(vlr, lr, 1, 1, 1, 1), INT32S(vstep, step, 1),
                        FLOATS(vnorm, norm, 1, 1, 1, 1), INT32S(vskipped, skipped, 1), NULL, &adam));
  if (skipped[0] || step[0] != 1) {
    fprintf(stderr, "the update was skipped\n");
    exit(1);
  }
}

/* The same in plain loops, from the same numbers. */
static void plain(void) {
  double *A = wadapter, *Bt = wadapter + R * K;
  plain_product(N, H, K, 1, wx, 0, wW, 1, wh);
  plain_product(N, R, K, 1, wx, 0, A, 1, wu);
  plain_product(N, H, R, kScale, wu, 0, Bt, 0, wh);
  plain_product(N, V, H, 1, wh, 0, whead, 1, wlogits);
  plain_cross_entropy(N, V, targets, 1.0 / N, wlogits, wnll);
  plain_product(N, H, V, 1, wlogits, 0, whead, 0, wdh);
  plain_product(N, R, H, kScale, wdh, 0, Bt, 1, wdU);
  plain_product(N, K, H, 1, wdh, 0, wW, 0, wdx);
  plain_product(N, K, R, 1, wdU, 0, A, 0, wdx);
  plain_product(R, K, N, 1, wdU, 1, wx, 0, wgradient);
  plain_product(R, H, N, kScale, wu, 1, wdh, 0, wgradient + R * K);
}

int main(void) {
  if (dynadapt_abi_version() != DYNADAPT_ABI_VERSION) {
    fprintf(stderr, "the library has ABI version %d, this program %d\n", dynadapt_abi_version(), DYNADAPT_ABI_VERSION);
    return 1;
  }
  printf("instruction set %s, %d threads\n", dynadapt_isa(), dynadapt_num_threads());
  plain_random(N * K, 1, x, wx);
  plain_random(H * K, 0.4, W, wW);
  plain_random(V * H, 0.5, head, whead);
  plain_random(P, 0.3, adapter, wadapter);
  for (int i = 0; i < N; i++) targets[i] = (7 * i) % V;

  View vW, vhead;
  dynadapt_matrix *weight, *vocabulary; /* packed once, read by every call */
  check(dynadapt_matrix_create(FLOATS(vW, W, 2, H, K, 1), &weight));
  check(dynadapt_matrix_create(FLOATS(vhead, head, 2, V, H, 1), &vocabulary));

  const float before = library(weight, vocabulary, 1);
  plain();
  plain_check("h, the linear's output", N * H, h, wh, 1e-5);
  plain_check("negative log-likelihoods", N, nll, wnll, 1e-5);
  plain_check("gradient of h", N * H, dh, wdh, 1e-5);
  plain_check("gradient of x", N * K, dx, wdx, 1e-5);
  plain_check("gradient of the adapter", P, gradient, wgradient, 1e-5);

  update();
  plain_first_adam_step(P, kLearningRate, 1e-8, 1, wgradient, wadapter);
  plain_check("adapter after the update", P, adapter, wadapter, 1e-5);

  const float after = library(weight, vocabulary, 0);
  dynadapt_matrix_destroy(weight);
  dynadapt_matrix_destroy(vocabulary);
  printf("loss before the update %.4f, after it %.4f\n", before, after);
  return after < before ? 0 : 1;
}
