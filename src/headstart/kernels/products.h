/* c[i, j] (+)= sum over k of a[i, k] b[k, j], where k is three numbers, each with a step through a and through b.
   Sizes and steps are known when this is compiled. */

#define REAL_WIDTH ((int)(VECTOR / sizeof(REAL)))
typedef REAL REAL_vector __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
typedef REAL REAL_square __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));

#define REAL_SUMMED const int adds, const long K0, const long K1, const long K2
#define REAL_FROM(a) const REAL *restrict a, const long a##0, const long a##1, const long a##2

/* So many rows and so many vectors of columns, all of them in registers, while k runs. */
INLINE void REAL_block(const int rows, const int vectors, REAL_SUMMED, REAL_FROM(a), const long ai, REAL_FROM(b),
                       REAL *restrict c, const long ci) {
  REAL_vector sum[8][WIDEST];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++)
      sum[i][v] = adds ? *(const REAL_vector *)(c + i * ci + v * REAL_WIDTH) : (REAL_vector){0};
  for (long p = 0; p < K0; p++)
    for (long q = 0; q < K1; q++)
      for (long k = 0; k < K2; k++)
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
          for (int v = 0; v < vectors; v++)
            sum[i][v] += a[i * ai + p * a0 + q * a1 + k * a2] *
                         *(const REAL_vector *)(b + p * b0 + q * b1 + k * b2 + v * REAL_WIDTH);
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++)
      *(REAL_vector *)(c + i * ci + v * REAL_WIDTH) = sum[i][v];
}

/* So many vectors of columns of all rows, in blocks of about the same height. */
INLINE void REAL_columns(const int vectors, REAL_SUMMED, const long M, REAL_FROM(a), const long ai, REAL_FROM(b),
                         REAL *restrict c, const long ci) {
  const int most = REGISTERS / vectors < 8 ? REGISTERS / vectors : 8;
  const int blocks = (int)((M + most - 1) / most), rows = (int)((M + blocks - 1) / blocks);
  long i = 0;
  for (; i + rows <= M; i += rows)
    REAL_block(rows, vectors, adds, K0, K1, K2, a + i * ai, a0, a1, a2, ai, b, b0, b1, b2, c + i * ci, ci);
  if (M % rows)
    REAL_block((int)(M % rows), vectors, adds, K0, K1, K2, a + i * ai, a0, a1, a2, ai, b, b0, b1, b2, c + i * ci, ci);
}

/* The columns of b, and of c, lie beside each other. */
INLINE void REAL_product(REAL_SUMMED, const long M, const long N, REAL_FROM(a), const long ai, REAL_FROM(b),
                         REAL *restrict c, const long ci, REAL *restrict scratch) {
  const int vectors = (int)(N / REAL_WIDTH), last = vectors % WIDEST;
  long j = 0;
  for (; j + WIDEST * REAL_WIDTH <= N; j += WIDEST * REAL_WIDTH)
    REAL_columns(WIDEST, adds, K0, K1, K2, M, a, a0, a1, a2, ai, b + j, b0, b1, b2, c + j, ci);
  if (last)
    REAL_columns(last, adds, K0, K1, K2, M, a, a0, a1, a2, ai, b + j, b0, b1, b2, c + j, ci);
  j += last * REAL_WIDTH;
  if (j < N) { /* the others in vectors that are filled up */
    const int left = (int)(N - j);
    REAL *restrict filled = scratch, *restrict sum = scratch + K0 * K1 * K2 * REAL_WIDTH, *restrict next = filled;
    for (long p = 0; p < K0; p++)
      for (long q = 0; q < K1; q++)
        for (long k = 0; k < K2; k++, next += REAL_WIDTH)
          for (int v = 0; v < REAL_WIDTH; v++)
            next[v] = v < left ? b[p * b0 + q * b1 + k * b2 + j + v] : 0;
    for (long i = 0; i < M && adds; i++)
      for (int v = 0; v < REAL_WIDTH; v++)
        sum[i * REAL_WIDTH + v] = v < left ? c[i * ci + j + v] : 0;
    REAL_columns(1, adds, K0, K1, K2, M, a, a0, a1, a2, ai, filled, K1 * K2 * REAL_WIDTH, K2 * REAL_WIDTH, REAL_WIDTH,
                 sum, REAL_WIDTH);
    for (long i = 0; i < M; i++)
      for (int v = 0; v < left; v++)
        c[i * ci + j + v] = sum[i * REAL_WIDTH + v];
  }
}

/* The numbers along k lie beside each other, in a and in b. */
INLINE void REAL_dots(const int adds, const long M, const long N, const long K, const REAL *restrict a, const long ai,
                      const REAL *restrict b, const long bj, REAL *restrict c, const long ci, const long cj) {
  for (long i = 0; i < M; i++)
    for (long j = 0; j < N; j++) {
      REAL sum = 0;
#pragma omp simd reduction(+ : sum)
      for (long k = 0; k < K; k++)
        sum += a[i * ai + k] * b[j * bj + k];
      c[i * ci + j * cj] = adds ? c[i * ci + j * cj] + sum : sum;
    }
}

/* to[i, j] = from[j, i], of as many rows and columns as such a vector has numbers. */
INLINE void REAL_turned(const REAL *restrict from, const long step, REAL *restrict to, const long next) {
  enum { SIDE = 32 / sizeof(REAL) };
  REAL_square rows[SIDE], found[SIDE];
#pragma GCC unroll 8
  for (int i = 0; i < SIDE; i++)
    rows[i] = *(const REAL_square *)(from + i * step);
#pragma GCC unroll 3
  for (int round = 1; round < SIDE; round *= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < SIDE / 2; i++) {
      found[2 * i] = __builtin_shufflevector(rows[i], rows[i + SIDE / 2], REAL_FIRST);
      found[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + SIDE / 2], REAL_LAST);
    }
#pragma GCC unroll 8
    for (int i = 0; i < SIDE; i++)
      rows[i] = found[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < SIDE; i++)
    *(REAL_square *)(to + i * next) = rows[i];
}

/* to[k, j] = b[k, j], the columns beside each other. */
INLINE void REAL_packed(const long K, const long N, const REAL *restrict b, const long bk, const long bj,
                        REAL *restrict to) {
  const long side = 32 / sizeof(REAL), rows = bk == 1 ? K / side * side : 0, columns = N / side * side;
  for (long k = 0; k < rows; k += side)
    for (long j = 0; j < columns; j += side)
      REAL_turned(b + k + j * bj, bj, to + k * N + j, N);
  for (long k = 0; k < K; k++)
    for (long j = k < rows ? columns : 0; j < N; j++)
      to[k * N + j] = b[k * bk + j * bj];
}
