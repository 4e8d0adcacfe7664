//! X25519 (RFC 7748) by aws-lc, which is linked for TLS anyway.
//!
//! Its functions allocate nothing. What they leave of a private key lies on the stack, below the caller's frame; who
//! calls them wipes it with [`crate::process::wipe_stack`].

/// The public key of `private`.
pub fn public_key(private: &[u8; 32]) -> [u8; 32] {
    let mut public = [0; 32];
    // SAFETY: both point to 32 bytes, one of them to be written; curve25519.h asks for nothing else.
    unsafe { aws_lc_sys::X25519_public_from_private(public.as_mut_ptr(), private.as_ptr()) };
    public
}

/// What the holders of `private` and of the private key of `public` both compute; `None` if `public` is a point of low
/// order, with which it would be zeros whatever `private` is.
pub fn agree(private: &[u8; 32], public: &[u8; 32]) -> Option<[u8; 32]> {
    let mut shared = [0; 32];
    // SAFETY: all three point to 32 bytes, the first to be written; curve25519.h asks for nothing else.
    let good =
        unsafe { aws_lc_sys::X25519(shared.as_mut_ptr(), private.as_ptr(), public.as_ptr()) };
    (good == 1).then_some(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_compute_what_rfc_7748_says() {
        // Section 6.1.
        let [a, a_public, b, b_public, shared] = [
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        ]
        .map(unhex);
        assert_eq!(public_key(&a), a_public);
        assert_eq!(public_key(&b), b_public);
        assert_eq!(agree(&a, &b_public), Some(shared));
        assert_eq!(agree(&b, &a_public), Some(shared));
    }

    #[test]
    fn points_of_low_order_give_nothing() {
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            assert_eq!(agree(&[7; 32], &point), None, "{point:?}");
        }
    }

    fn unhex(text: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    }
}
