//! Tokens for the distribution protocol: requested from the realm that a challenge names.

use super::fault::Fault;
use super::request::PRODUCT;
use super::{Endpoint, Registry};
use crate::Auth;
use crate::registry::auth;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::Value;

/// Maximum size of a token response. Real ones have a few KiB.
const MAX_TOKEN: u64 = 1 << 20;

impl Registry {
    /// Requests a token from the realm, with the user's credentials if there are any.
    pub(super) async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        auth: Option<&Auth>,
    ) -> Result<HeaderValue, Fault> {
        let no_url = || Fault::Final("token realm is not a URL".to_owned());
        let uri: Uri = realm.parse().map_err(|_| no_url())?;
        let host = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || host.is_empty() || host.contains('@') {
            return Err(no_url());
        }
        let own_scope = format!("repository:{}:pull", self.reference.repository());
        let scope = scope.filter(|scope| !scope.is_empty()).unwrap_or(&own_scope);
        if endpoint.host.scheme == "https" && uri.scheme_str() == Some("http") && auth.is_some() {
            return Err(Fault::Final(format!(
                "token realm {host} is http: it would receive the credentials unencrypted"
            )));
        }
        let mut pairs = vec![("scope", scope)];
        pairs.extend(service.map(|service| ("service", service)));
        let password = auth.and_then(auth::user_and_password);
        let identity = auth.map(|auth| auth.identity_token.as_str()).filter(|token| !token.is_empty());
        let mut response = None;
        if let Some(identity) = identity {
            let request = refresh_request(&uri, &pairs, identity).map_err(|_| no_url())?;
            let answer = self.send(&endpoint.http, request).await?;
            // A realm without OAuth2 may still take a password.
            let is_unknown = matches!(answer.status().as_u16(), 404 | 405);
            response = Some(answer).filter(|_| !is_unknown || password.is_none());
        }
        let response = match response {
            Some(response) => response,
            None => {
                let request = password_request(realm, &uri, &pairs, password.as_ref());
                self.send(&endpoint.http, request.map_err(|_| no_url())?).await?
            }
        };
        match response.status() {
            StatusCode::OK => {}
            _ => return Err(self.fault(response).await.about(&format!("token realm {host}"))),
        }
        let bytes = self.read_all(response, MAX_TOKEN).await?;
        let unusable = || Fault::Final(format!("token realm {host} sent no valid token"));
        let answer: Value = serde_json::from_slice(&bytes).map_err(|_| unusable())?;
        // Realms send one of the two or both, and one of them may be empty or null. When the token expires matters not:
        // the registry answers with another challenge then.
        let tokens = ["token", "access_token"].into_iter().filter_map(|key| answer.get(key)?.as_str());
        let token = tokens.map(str::trim).find(|token| !token.is_empty());
        token.and_then(auth::bearer).ok_or_else(unusable)
    }
}

/// Exchanges a refresh token (OAuth2, RFC 6749, 6).
fn refresh_request(
    uri: &Uri,
    pairs: &[(&str, &str)],
    identity: &str,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let own = [("grant_type", "refresh_token"), ("refresh_token", identity), ("client_id", "copepod")];
    let pairs = [pairs, &own].concat();
    Request::builder()
        .method(Method::POST)
        .uri(uri.clone())
        .header(USER_AGENT, PRODUCT)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(auth::form(&pairs).into()))
}

/// Requests a token with a password, or as nobody (the distribution project's token protocol).
fn password_request(
    realm: &str,
    uri: &Uri,
    pairs: &[(&str, &str)],
    password: Option<&(String, String)>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let account = password.map(|(user, _)| ("account", user.as_str()));
    let pairs: Vec<_> = pairs.iter().copied().chain(account).collect();
    let joint = if uri.query().is_some() { '&' } else { '?' };
    let mut request =
        Request::builder().uri(format!("{realm}{joint}{}", auth::form(&pairs))).header(USER_AGENT, PRODUCT);
    if let Some(basic) = password.and_then(|(user, password)| auth::basic(user, password)) {
        request = request.header(AUTHORIZATION, basic);
    }
    request.body(Full::default())
}
