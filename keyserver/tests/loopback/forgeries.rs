//! Certificates that were forged to pass for a client's, shown to the real server: each is refused as a stranger is, or
//! does not get through TLS, and the log says why. The server knows keys; what a certificate says of its own is nothing.

use latchkey_protocol::{VolumeId, wire};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use crate::machine::{Boot, Machine};
use crate::server::{Home, Server};
use crate::wire::{Reply, certified, exchange_with, presenting, request};

/// What becomes of a forgery.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// TLS: whoever shows it cannot prove that he has its key, or it is no certificate.
    NoHandshake,
    /// It proves a key that nobody registered.
    Stranger,
}

struct Forgery {
    name: &'static str,
    shown: CertifiedKey,
    end: End,
}

/// What a thief has: everything that is public, and no key.
struct Thief {
    genuine: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    server: CertificateDer<'static>,
    key: KeyPair,
}

impl Thief {
    fn of(server: &Server, machine: &Machine) -> Self {
        let config = crate::wire::client_config(latchkeyd::tls::provider(), None, None);
        let stream = crate::wire::connect_with(server.address, config).unwrap();
        let chain = stream.conn.peer_certificates().unwrap();
        Self {
            genuine: machine.boot.certificate.clone(),
            ca: chain[1].clone(),
            server: chain[0].clone(),
            key: KeyPair::generate_for(&PKCS_ED25519).unwrap(),
        }
    }

    /// Names, serial number and dates of the genuine one.
    fn copied(&self) -> CertificateParams {
        let (_, genuine) = x509_parser::parse_x509_certificate(&self.genuine).unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, attribute) in [
            (
                DnType::CommonName,
                genuine.subject().iter_common_name().next(),
            ),
            (
                DnType::OrganizationalUnitName,
                genuine.subject().iter_organizational_unit().next(),
            ),
        ] {
            let text = attribute.unwrap().as_str().unwrap();
            params.distinguished_name.push(kind, text);
        }
        params.serial_number = Some(SerialNumber::from_slice(genuine.raw_serial()));
        params.use_authority_key_identifier_extension = true;
        params
    }

    /// A CA of the thief's with the name of the real one.
    fn false_ca(&self) -> (CertificateParams, KeyPair) {
        let (_, ca) = x509_parser::parse_x509_certificate(&self.ca).unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = ca.subject().iter_common_name().next().unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        (params, KeyPair::generate_for(&PKCS_ED25519).unwrap())
    }

    fn signed_by_false_ca(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
    ) -> CertificateDer<'static> {
        let (ca, ca_key) = self.false_ca();
        let issuer = Issuer::from_params(&ca, &ca_key);
        params.signed_by(key, &issuer).unwrap().der().clone()
    }

    /// The genuine one with the thief's key in place of the client's; the signature stays.
    fn with_own_key(&self, certificate: &[u8]) -> CertificateDer<'static> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
        let old = parsed.public_key().subject_public_key.data.as_ref();
        let at = find(certificate, old);
        let mut changed = certificate.to_vec();
        changed[at..at + old.len()].copy_from_slice(self.key.public_key_raw());
        changed.into()
    }

    fn forgeries(&self) -> Vec<Forgery> {
        let own = |chain| certified(chain, &self.key);
        let copied = self.copied();
        let mut expired = self.copied();
        expired.not_before = rcgen::date_time_ymd(2001, 1, 1);
        expired.not_after = rcgen::date_time_ymd(2002, 1, 1);
        let mut altered = self.genuine.to_vec();
        *altered.last_mut().unwrap() ^= 1;
        let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut as_ca = self.copied();
        as_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let by_false_ca = self.signed_by_false_ca(&copied, &self.key);
        let self_signed = copied.self_signed(&self.key).unwrap().der().clone();
        use End::{NoHandshake, Stranger};
        [
            (
                "same serial and names, by another CA of the same name",
                own(vec![by_false_ca.clone()]),
                Stranger,
            ),
            (
                "the same with the real CA behind it",
                own(vec![by_false_ca.clone(), self.ca.clone()]),
                Stranger,
            ),
            (
                "the same with the genuine certificate behind it",
                own(vec![by_false_ca, self.genuine.clone(), self.ca.clone()]),
                Stranger,
            ),
            (
                "signed by its own key",
                own(vec![self_signed.clone()]),
                Stranger,
            ),
            (
                "expired, by another CA",
                own(vec![self.signed_by_false_ca(&expired, &self.key)]),
                Stranger,
            ),
            (
                "a CA of its own, as a client",
                own(vec![as_ca.self_signed(&self.key).unwrap().der().clone()]),
                Stranger,
            ),
            (
                "a P-256 key in the same names",
                certified(vec![self.signed_by_false_ca(&copied, &p256)], &p256),
                Stranger,
            ),
            (
                "the genuine one with another key put in",
                own(vec![self.with_own_key(&self.genuine)]),
                Stranger,
            ),
            (
                "the CA's own with another key put in",
                own(vec![self.with_own_key(&self.ca)]),
                Stranger,
            ),
            (
                "the genuine one, signed with another key",
                own(vec![self.genuine.clone()]),
                NoHandshake,
            ),
            (
                "the genuine one, signed with a key of another kind",
                certified(vec![self.genuine.clone()], &p256),
                NoHandshake,
            ),
            (
                "the genuine one with its signature altered",
                own(vec![altered.into()]),
                NoHandshake,
            ),
            (
                "the genuine one before one's own",
                own(vec![self.genuine.clone(), self_signed]),
                NoHandshake,
            ),
            (
                "the CA's certificate as a client's",
                own(vec![self.ca.clone()]),
                NoHandshake,
            ),
            (
                "the server's own certificate",
                own(vec![self.server.clone()]),
                NoHandshake,
            ),
            (
                "cut short",
                own(vec![self.genuine[..self.genuine.len() / 2].to_vec().into()]),
                NoHandshake,
            ),
        ]
        .map(|(name, shown, end)| Forgery { name, shown, end })
        .into()
    }
}

fn find(all: &[u8], part: &[u8]) -> usize {
    let windows = all.windows(part.len());
    windows.enumerate().find(|(_, at)| *at == part).unwrap().0
}

/// A request for a volume's release.
fn asking_for(volume: VolumeId) -> Vec<u8> {
    let body = Boot::begin().wants(&[volume]);
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: key-server\r\nContent-Length: {}\r\n\r\n",
        wire::RELEASE,
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

fn shown(server: &Server, certified: CertifiedKey, volume: VolumeId) -> Result<Reply, String> {
    let config = presenting(latchkeyd::tls::provider(), Some(certified), None);
    exchange_with(server.address, config, &asking_for(volume))
}

/// A server that logs what strangers do.
pub fn telling() -> Server {
    let home = Home::made();
    let config = std::fs::read_to_string(home.config()).unwrap();
    std::fs::write(home.config(), format!("{config}log-level = 'debug'\n")).unwrap();
    home.serve()
}

#[test]
fn no_forged_certificate_passes_for_a_clients_and_all_that_speak_hear_the_same() {
    let server = telling();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let thief = Thief::of(&server, &machine);
    let nobody = request(server.address, None, "GET", "/", b"").without_date();
    let forgeries = thief.forgeries();
    assert!(forgeries.len() >= 12);
    let mut ends = [0, 0];
    for Forgery {
        name,
        shown: certificate,
        end,
    } in forgeries
    {
        for asked in [volume, VolumeId::random().unwrap()] {
            match shown(&server, certificate.clone(), asked) {
                Ok(reply) => {
                    assert_eq!(end, End::Stranger, "{name}: {reply:?}");
                    assert_eq!(reply.without_date(), nobody, "{name}");
                }
                Err(why) => assert_eq!(end, End::NoHandshake, "{name}: {why}"),
            }
            ends[usize::from(end == End::Stranger)] += 1;
        }
    }
    // The log says of each what was wrong with it.
    let [handshakes, strangers] = ends;
    let log = server
        .log()
        .wait_for_all("TLS handshake failed", handshakes);
    let unknown = log
        .iter()
        .filter(|line| line.contains("unknown client key"));
    assert_eq!(unknown.count(), strangers);
    assert_eq!(server.home.audited("released"), 0);
    // The genuine one opens, as it did: none of them locked anybody out.
    machine.released(&Boot::begin(), volume);
}

#[test]
fn the_holder_of_the_key_is_the_client_whatever_certificate_carries_it() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let thief = Thief::of(&server, &machine);
    // No forgeries: whoever has the key has the client's identity, and needs no certificate for it.
    let expired = {
        let mut params = thief.copied();
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        thief.signed_by_false_ca(&params, &machine.boot.key)
    };
    let other_name = CertificateParams::new(["web-2".to_owned()]).unwrap();
    let other_name = other_name.self_signed(&*machine.boot.key).unwrap();
    for certificate in [expired, other_name.der().clone()] {
        let reply = shown(
            &server,
            certified(vec![certificate], &machine.boot.key),
            volume,
        );
        let reply = reply.unwrap();
        assert!(reply.body.contains("\"released\""), "{}", reply.body);
    }
    // In the audit it is the client that the key was registered for.
    let audit = server.home.audit();
    let released = audit.iter().filter(|entry| entry["kind"] == "released");
    let clients: Vec<_> = released.map(|entry| entry["client"].clone()).collect();
    assert_eq!(clients, ["web-1", "web-1"]);
}

#[test]
fn another_clients_volume_is_answered_as_one_that_does_not_exist_and_the_audit_tells_them_apart() {
    let server = telling();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let other = Machine::join(&server, "web-2");
    let none = VolumeId::random().unwrap();
    let body = |asked: VolumeId| {
        let reply = request(
            server.address,
            Some(&other.boot),
            "POST",
            wire::RELEASE,
            &Boot::begin().wants(&[asked]),
        );
        let reply = reply.without_date();
        let body = reply.body.replace(&asked.to_string(), "ID");
        (reply.status, reply.headers, body)
    };
    assert_eq!(body(volume), body(none));
    let texts: Vec<String> = server
        .home
        .audit()
        .iter()
        .filter(|entry| entry["kind"] == "refused" && entry["client"] == "web-2")
        .map(|entry| entry["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains(&volume.to_string()) && texts[1].contains(&none.to_string()));
    assert_ne!(
        texts[0].replace(&volume.to_string(), ""),
        texts[1].replace(&none.to_string(), "")
    );
}
