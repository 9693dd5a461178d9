/* What the examples' calls must give, in plain loops and double precision. Row-major matrices throughout. */
#ifndef DYNADAPT_EXAMPLES_PLAIN_LOOPS_H_
#define DYNADAPT_EXAMPLES_PLAIN_LOOPS_H_

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* c [m, n] += scale * a b, with a [m, k] or, transposed, [k, m], and b [k, n] or, transposed, [n, k]. */
static void plain_product(int m, int n, int k, double scale, const double* a, int a_transposed, const double* b, int b_transposed,
                          double* c) {
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      double sum = 0;
      for (int l = 0; l < k; l++)
        sum += (a_transposed ? a[l * m + i] : a[i * k + l]) * (b_transposed ? b[j * k + l] : b[l * n + j]);
      c[i * n + j] += scale * sum;
    }
}

/* logits [n, v] become weight * (softmax - onehot(target)); nll [n]. */
static void plain_cross_entropy(int n, int v, const long long* targets, double weight, double* logits, double* nll) {
  for (int i = 0; i < n; i++) {
    double* row = logits + i * v;
    double most = row[0], sum = 0;
    for (int j = 1; j < v; j++) most = row[j] > most ? row[j] : most;
    for (int j = 0; j < v; j++) sum += exp(row[j] - most);
    const double lse = most + log(sum);
    nll[i] = lse - row[targets[i]];
    for (int j = 0; j < v; j++) row[j] = weight * (exp(row[j] - lse) - (j == targets[i]));
  }
}

/* The first step of Adam after the gradient's norm was clipped to `clip`: the moments are the gradient's own, so each parameter
 * moves by lr * g / (|g| + eps). */
static void plain_first_adam_step(int count, double lr, double eps, double clip, const double* gradient, double* parameters) {
  double square = 0;
  for (int i = 0; i < count; i++) square += gradient[i] * gradient[i];
  const double scale = sqrt(square) > clip ? clip / sqrt(square) : 1;
  for (int i = 0; i < count; i++) parameters[i] -= lr * scale * gradient[i] / (fabs(scale * gradient[i]) + eps);
}

/* Ends the program when `got` is further than `tolerance` from `expected`, relative to the largest expected value. */
static void plain_check(const char* what, int count, const float* got, const double* expected, double tolerance) {
  double largest = 0, error = 0;
  for (int i = 0; i < count; i++) {
    const double difference = fabs(got[i] - expected[i]);
    largest = fmax(largest, fabs(expected[i]));
    error = difference > error || isnan(difference) ? difference : error;
  }
  printf("%-28s off by %.1e of %.3g\n", what, error, largest);
  if (!(error <= tolerance * largest)) {
    fprintf(stderr, "%s: error %g, accepted is %g\n", what, error, tolerance * largest);
    exit(1);
  }
}

/* Numbers between -scale and scale, the same in every run; the float ones are those that the library gets. */
static void plain_random(int count, double scale, float* values, double* wide) {
  static unsigned state = 1;
  for (int i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    values[i] = (float)(scale * ((state >> 8) / 8388608.0 - 1.0));
    wide[i] = values[i];
  }
}

#endif /* DYNADAPT_EXAMPLES_PLAIN_LOOPS_H_ */
