// The matrix products and vector operations of MinkowskiEngine's CPU code, by torch: takes the place of its
// mkl_alternate.hpp, so that it needs no BLAS of its own and shares torch's threads instead of competing with them.
#ifndef MKL_ALTERNATE_H_
#define MKL_ALTERNATE_H_

#include <torch/types.h>

enum CBLAS_ORDER { CblasRowMajor = 101, CblasColMajor = 102 };
enum CBLAS_TRANSPOSE { CblasNoTrans = 111, CblasTrans = 112, CblasConjTrans = 113 };

namespace voxelwave {

// A view of packed row-major memory, transposed where the caller's flag says that it is stored so.
template <typename T> at::Tensor view(const T *data, bool transposed, int64_t rows, int64_t columns) {
  auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  auto *memory = const_cast<T *>(data);
  return transposed ? at::from_blob(memory, {columns, rows}, options).t() : at::from_blob(memory, {rows, columns}, options);
}

// C = alpha op(A) op(B) + beta C with packed matrices, op(A) being M x K. Column-major C is row-major C^T = op(B)^T op(A)^T.
template <typename T>
void gemm(CBLAS_ORDER order, CBLAS_TRANSPOSE trans_a, CBLAS_TRANSPOSE trans_b, int m, int n, int k, T alpha, const T *a,
          const T *b, T beta, T *c) {
  at::AutoDispatchBelowAutograd without_autograd;
  const bool ta = trans_a != CblasNoTrans, tb = trans_b != CblasNoTrans;
  if (order == CblasRowMajor) {
    at::Tensor out = view(c, false, m, n);
    out.addmm_(view(a, ta, m, k), view(b, tb, k, n), beta, alpha);
  } else {
    at::Tensor out = view(c, false, n, m);
    out.addmm_(view(b, tb, n, k), view(a, ta, k, m), beta, alpha);
  }
}

} // namespace voxelwave

#define DEFINE_PRODUCT(name, T)                                                                                          \
  inline void name(CBLAS_ORDER order, CBLAS_TRANSPOSE trans_a, CBLAS_TRANSPOSE trans_b, int m, int n, int k, T alpha,    \
                   const T *a, int, const T *b, int, T beta, T *c, int) {                                                \
    voxelwave::gemm<T>(order, trans_a, trans_b, m, n, k, alpha, a, b, beta, c);                                          \
  }
DEFINE_PRODUCT(cblas_sgemm, float)
DEFINE_PRODUCT(cblas_dgemm, double)

#define DEFINE_VECTOR(prefix, T)                                                                                         \
  inline void prefix##Add(int n, const T *a, const T *b, T *y) { for (int i = 0; i < n; ++i) y[i] = a[i] + b[i]; }       \
  inline void prefix##Sub(int n, const T *a, const T *b, T *y) { for (int i = 0; i < n; ++i) y[i] = a[i] - b[i]; }       \
  inline void prefix##Mul(int n, const T *a, const T *b, T *y) { for (int i = 0; i < n; ++i) y[i] = a[i] * b[i]; }       \
  inline void prefix##Div(int n, const T *a, const T *b, T *y) { for (int i = 0; i < n; ++i) y[i] = a[i] / b[i]; }
DEFINE_VECTOR(vs, float)
DEFINE_VECTOR(vd, double)

inline void cblas_saxpy(int n, float alpha, const float *x, int, float *y, int) { for (int i = 0; i < n; ++i) y[i] += alpha * x[i]; }
inline void cblas_daxpy(int n, double alpha, const double *x, int, double *y, int) { for (int i = 0; i < n; ++i) y[i] += alpha * x[i]; }

#endif // MKL_ALTERNATE_H_
