//! Vector instruction sets, chosen at run time.
//!
//! [`Isa`] is a token: whoever holds one may run its instructions, because [`Isa::detect`] and [`Isa::named`] hand
//! out only what the machine has. Kernels are written once, generic over [`Simd`], and compiled for each set inside
//! a function that carries the `target_feature` (see [`dispatch!`](crate::simd::dispatch)).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod tiles;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

use crate::{DType, Element, Error, Result};

/// A vector instruction set that this machine is known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa(pub(crate) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// AVX-512 with vectors and tiles of bfloat16, and tiles of bytes.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// AVX-512 with products of bytes.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
    /// `Portable`, with tiles in software: how tiles are used is tested everywhere.
    #[cfg(test)]
    SoftTiles,
}

impl Isa {
    /// Every set this machine has, the widest first; the last is always `portable`.
    pub fn available() -> Vec<Isa> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            #[cfg(target_os = "linux")]
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512bf16")
                && tiles::amx::available()
            {
                sets.push(Isa(Kind::Amx));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                if is_x86_feature_detected!("avx512vnni") {
                    sets.push(Isa(Kind::Vnni));
                }
                sets.push(Isa(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Isa(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            sets.push(Isa(Kind::Neon));
        }
        sets.push(Isa(Kind::Portable));
        sets
    }

    /// The widest set of vectors this machine has.
    pub fn detect() -> Isa {
        Isa::best_for(DType::F32)
    }

    /// The set that computes fastest with elements of a type.
    pub fn best_for(dtype: DType) -> Isa {
        let sets = Isa::available();
        let fits = |isa: &&Isa| isa.has_tiles_of(dtype) || !isa.has_tiles_of(DType::Int8);
        sets.iter().find(fits).copied().unwrap_or(Isa(Kind::Portable))
    }

    /// Whether it multiplies tiles of a type; those that do of any do of bytes.
    pub(crate) fn has_tiles_of(self, dtype: DType) -> bool {
        match self.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kind::Amx => dtype != DType::F32,
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni => dtype == DType::Int8,
            #[cfg(test)]
            Kind::SoftTiles => dtype != DType::F32,
            _ => false,
        }
    }

    /// The set of that name (`amx`, `avx512vnni`, `avx512`, `avx2`, `neon`, `portable`).
    ///
    /// # Errors
    /// [`Error::Isa`] when the machine lacks it or the name is unknown.
    pub fn named(name: &str) -> Result<Isa> {
        let sets = Isa::available();
        sets.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            Error::Isa(name.to_owned(), sets.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kind::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            Kind::Portable => "portable",
            #[cfg(test)]
            Kind::SoftTiles => "soft tiles",
        }
    }
}

/// A part of a kernel that is compiled as a function of its own: where a kernel has many forms of one loop, the compiler
/// finds registers for each.
pub(crate) trait Outlined {
    /// # Safety
    /// As the part says, inside a function compiled for `S`.
    unsafe fn run<S: Simd>(self);
}

/// Operations on a vector of `LANES` f32.
///
/// # Safety
/// Every method may execute instructions of the set: a caller must run inside a function compiled for it, on a
/// machine that has it. Pointers must be valid for the lanes that are read or written.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// The vector.
    type V: Copy;
    /// Lanes of f32.
    const LANES: usize;
    /// Vectors in a full column panel of the GEMM tile.
    const NV: usize;
    /// Most rows of the GEMM tile with full panels.
    const MR: usize;
    /// Vectors and most rows of the GEMM tile where there are many rows.
    const WIDE: (usize, usize) = (Self::NV, Self::MR);

    /// Runs a part of a kernel in a function of its own.
    unsafe fn outlined<T: Outlined>(part: T);
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load_f32(p: *const f32) -> Self::V;
    unsafe fn store_f32(p: *mut f32, v: Self::V);
    /// Loads the first `n < LANES` lanes, zero elsewhere.
    unsafe fn load_first_f32(p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller vouches for `n` readable values, and n < LANES <= 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load_f32(lanes.as_ptr())
        }
    }
    /// Stores the first `n < LANES` lanes.
    unsafe fn store_first_f32(p: *mut f32, n: usize, v: Self::V) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller vouches for `n` writable values, and n < LANES <= 16.
        unsafe {
            Self::store_f32(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
    unsafe fn load_bf16(p: *const half::bf16) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller vouches for LANES <= 16 readable values.
        unsafe {
            for (i, lane) in lanes.iter_mut().enumerate().take(Self::LANES) {
                *lane = (*p.add(i)).to_f32();
            }
            Self::load_f32(lanes.as_ptr())
        }
    }
    /// Stores all lanes, rounded to nearest even.
    unsafe fn store_bf16(p: *mut half::bf16, v: Self::V) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller vouches for LANES <= 16 writable values.
        unsafe {
            Self::store_f32(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.iter().enumerate().take(Self::LANES) {
                *p.add(i) = half::bf16::from_f32(*lane);
            }
        }
    }
    unsafe fn load_i8(p: *const i8) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller vouches for LANES <= 16 readable values.
        unsafe {
            for (i, lane) in lanes.iter_mut().enumerate().take(Self::LANES) {
                *lane = f32::from(*p.add(i));
            }
            Self::load_f32(lanes.as_ptr())
        }
    }
    /// Stores all lanes, rounded to nearest even and saturated; none of them may be NaN.
    unsafe fn store_i8(p: *mut i8, v: Self::V) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller vouches for LANES <= 16 writable values.
        unsafe {
            Self::store_f32(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.iter().enumerate().take(Self::LANES) {
                *p.add(i) = i8::from_f32(*lane);
            }
        }
    }
    /// Loads whole numbers of 32 bits, rounded to f32.
    unsafe fn load_i32(p: *const i32) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller vouches for LANES <= 16 readable values.
        unsafe {
            for (i, lane) in lanes.iter_mut().enumerate().take(Self::LANES) {
                *lane = p.add(i).read() as f32;
            }
            Self::load_f32(lanes.as_ptr())
        }
    }
    /// `a·b + c`, rounded once where the set has a fused multiply-add.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The larger of both, NaN where either is NaN.
    unsafe fn max_nan(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Asks for the cache line at `p`, which may be any address.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    /// The same, for the second-level cache.
    #[inline(always)]
    unsafe fn prefetch_far(_p: *const u8) {}
    /// The same, for writing.
    #[inline(always)]
    unsafe fn prefetch_write(_p: *const u8) {}
    /// Sum of all lanes.
    unsafe fn sum(v: Self::V) -> f32;

    /// Loads `LANES` elements of any type.
    #[inline(always)]
    unsafe fn load<E: Element>(p: *const E) -> Self::V {
        // SAFETY: forwarded; the casts are between identical types, as DTYPE says.
        unsafe {
            match E::DTYPE {
                DType::F32 => Self::load_f32(p.cast()),
                DType::Bf16 => Self::load_bf16(p.cast()),
                DType::Int8 => Self::load_i8(p.cast()),
            }
        }
    }
    /// Stores `LANES` elements of any type, rounding to nearest.
    #[inline(always)]
    unsafe fn store<E: Element>(p: *mut E, v: Self::V) {
        // SAFETY: forwarded; the casts are between identical types, as DTYPE says.
        unsafe {
            match E::DTYPE {
                DType::F32 => Self::store_f32(p.cast(), v),
                DType::Bf16 => Self::store_bf16(p.cast(), v),
                DType::Int8 => Self::store_i8(p.cast(), v),
            }
        }
    }
    /// Two elements in turn, as often as there are lanes for.
    #[inline(always)]
    unsafe fn splat_pair<E: Element>(p: *const E) -> Self::V {
        // SAFETY: forwarded; two elements are read, and LANES <= 16.
        unsafe {
            let (even, odd) = ((*p).to_f32(), (*p.add(1)).to_f32());
            let lanes: [f32; 16] = std::array::from_fn(|i| if i % 2 == 0 { even } else { odd });
            Self::load_f32(lanes.as_ptr())
        }
    }
    /// Every second lane of `a` and then of `b`: those from lane 0 on, and those from lane 1 on.
    #[inline(always)]
    unsafe fn unzip(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        let mut lanes = [0.0f32; 32];
        // SAFETY: forwarded; LANES <= 16.
        unsafe {
            Self::store_f32(lanes.as_mut_ptr(), a);
            Self::store_f32(lanes.as_mut_ptr().add(Self::LANES), b);
            let of = |first: usize| -> [f32; 16] { std::array::from_fn(|i| lanes[2 * i + first]) };
            (Self::load_f32(of(0).as_ptr()), Self::load_f32(of(1).as_ptr()))
        }
    }
    /// Sums of neighbouring lanes, those of `a` first.
    #[inline(always)]
    unsafe fn add_pairs(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: forwarded.
        unsafe {
            let (even, odd) = Self::unzip(a, b);
            Self::add(even, odd)
        }
    }
    /// Loads the first `n <= LANES` elements, zero elsewhere.
    #[inline(always)]
    unsafe fn load_first<E: Element>(p: *const E, n: usize) -> Self::V {
        // SAFETY: forwarded; at most `n` elements are read.
        unsafe {
            if n >= Self::LANES {
                return Self::load(p);
            }
            if E::DTYPE == DType::F32 {
                return Self::load_first_f32(p.cast(), n);
            }
            let mut lanes = [0.0f32; 16];
            for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                *lane = (*p.add(i)).to_f32();
            }
            Self::load_f32(lanes.as_ptr())
        }
    }
    /// Stores the first `n <= LANES` elements, rounding to nearest.
    #[inline(always)]
    unsafe fn store_first<E: Element>(p: *mut E, n: usize, v: Self::V) {
        // SAFETY: forwarded; at most `n` elements are written.
        unsafe {
            if n >= Self::LANES {
                return Self::store(p, v);
            }
            if E::DTYPE == DType::F32 {
                return Self::store_first_f32(p.cast(), n, v);
            }
            let mut lanes = [0.0f32; 16];
            Self::store_f32(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.iter().enumerate().take(n) {
                *p.add(i) = E::from_f32(*lane);
            }
        }
    }
}

/// Defines `$name::run(isa, args)`: the generic kernel `$body::<S, E>` compiled once for every instruction set and
/// picked by the token.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$e:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$e: $crate::Element>(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
            fn avx512<$e: $crate::Element>($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::simd::Avx512, $e>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$e: $crate::Element>($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::simd::Avx2, $e>($($arg),*)
            }
            match isa.0 {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                // SAFETY: the token says that the machine has these features.
                $crate::simd::Kind::Amx => unsafe { avx512::<$e>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the token says that the machine has these features.
                $crate::simd::Kind::Vnni | $crate::simd::Kind::Avx512 => unsafe { avx512::<$e>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the token says that the machine has these features.
                $crate::simd::Kind::Avx2 => unsafe { avx2::<$e>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Kind::Neon => $body::<$crate::simd::Neon, $e>($($arg),*),
                $crate::simd::Kind::Portable => $body::<$crate::simd::Portable, $e>($($arg),*),
                #[cfg(test)]
                $crate::simd::Kind::SoftTiles => $body::<$crate::simd::Portable, $e>($($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;
