//! Releases against another implementation of HPKE: each opens what the other one sealed.
#![allow(clippy::unwrap_used)] // the helpers of tests as well

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use latchkey_protocol::encoding::{Bytes, length_prefixed};
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext, Share};
use latchkey_protocol::{ClientName, Generation, RequestId, ServerId, VolumeId};
use latchkey_secret::Secret;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn each_opens_what_the_other_one_sealed(
        seed in any::<[u8; 32]>(),
        encapsulation_seed in any::<[u8; 32]>(),
        share in any::<[u8; 32]>(),
    ) {
        let (private, public) = X25519HkdfSha256::derive_keypair(&seed);
        let pair = BootKeyPair::from_seed(secret(&seed));
        prop_assert_eq!(&pair.public().0[..], &public.to_bytes()[..]);

        let server = ServerId::of_ca(b"ca");
        let client: ClientName = "web-1".parse().unwrap();
        let (request, volume) = (RequestId::random().unwrap(), VolumeId::random().unwrap());
        let context = ReleaseContext {
            purpose: Purpose::Release,
            server: &server,
            client: &client,
            request: &request,
            volume: &volume,
            generation: Generation::FIRST,
        };
        let info = length_prefixed(&[
            b"latchkey release v1",
            b"release",
            server.as_bytes(),
            b"web-1",
            request.as_bytes(),
            volume.as_bytes(),
            &Generation::FIRST.0.to_be_bytes(),
        ]);

        let ours = Share(secret(&share))
            .seal_with(&pair.public(), context, secret(&encapsulation_seed))
            .unwrap();
        let (key, ciphertext) = ours.0.split_at(32);
        let key = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(key).unwrap();
        let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base, &private, &key, &info, ciphertext, b"",
        );
        prop_assert_eq!(opened.unwrap(), share);

        let (key, ciphertext) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base, &public, &info, &share, b"",
        )
        .unwrap();
        let theirs: Vec<u8> = [&key.to_bytes()[..], &ciphertext].concat();
        let opened = pair.open(&Bytes(theirs.try_into().unwrap()), context).unwrap();
        prop_assert_eq!(opened.0.expose_secret(), &share);
    }
}

fn secret(bytes: &[u8; 32]) -> Secret<32> {
    let mut secret = Secret::zeroed().unwrap();
    secret.expose_secret_mut().copy_from_slice(bytes);
    secret
}
